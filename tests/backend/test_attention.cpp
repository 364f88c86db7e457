#include <gmock/gmock.h>

#include <limits>

#include "backend/oracle.h"

namespace cmoe {
namespace {

using namespace oracle;
using ::testing::HasSubstr;

/// A cache of one sequence, filled with NaN: whatever reads beyond what was written shows.
struct Cache {
  Cache(int64_t kv_heads, int64_t capacity_, int64_t head_dim)
      : key(DType::f32, {kv_heads, capacity_, head_dim}),
        value(DType::f32, {kv_heads, capacity_, head_dim}),
        capacity(capacity_) {
    for (float& x : key.span<float>()) x = std::numeric_limits<float>::quiet_NaN();
    for (float& x : value.span<float>()) x = std::numeric_limits<float>::quiet_NaN();
  }
  AttentionSpan span(int64_t row_begin, int64_t rows, int64_t past) {
    return {row_begin, rows, past, key.data<float>(), value.data<float>(), capacity};
  }
  Tensor key, value;
  int64_t capacity;
};

struct Sequence {
  Sequence(int64_t tokens, int64_t heads_, int64_t kv_heads_, int64_t head_dim_, uint32_t seed)
      : q(random({tokens, heads_ * head_dim_}, seed)),
        k(random({tokens, kv_heads_ * head_dim_}, seed + 1)),
        v(random({tokens, kv_heads_ * head_dim_}, seed + 2)),
        kv_heads(kv_heads_),
        head_dim(head_dim_) {}

  /// The sequence in chunks of the given sizes (the last repeats), through one cache.
  Tensor run(const Backend& backend, std::vector<int64_t> chunks, DType dtype) const {
    const int64_t tokens = q.dim(0);
    Cache cache(kv_heads, tokens + 3, head_dim);
    Tensor out(DType::f32, q.shape());
    for (int64_t past = 0; past < tokens;) {
      const int64_t rows = std::min(chunks.front(), tokens - past);
      if (chunks.size() > 1) chunks.erase(chunks.begin());
      const AttentionSpan span = cache.span(0, rows, past);
      Tensor part = out.rows(past, past + rows);
      backend.attention(q.rows(past, past + rows), k.rows(past, past + rows), v.rows(past, past + rows), {&span, 1}, head_dim,
                        dtype, part);
      past += rows;
    }
    return out;
  }

  /// The sequence in numbers that bf16 holds: products of bf16 are exact, of its roundings only that of the weights is left.
  Sequence rounded() const {
    Sequence s = *this;
    for (Tensor* x : {&s.q, &s.k, &s.v}) {
      *x = x->clone();
      for (float& value : x->span<float>()) value = to_f32(to_bf16(value));
    }
    return s;
  }

  Tensor q, k, v;
  int64_t kv_heads, head_dim;
};

// Calls body with every set of kernels, and f32 or bf16 products.
void on_each_kernel(const std::function<void(const Backend&, DType)>& body) {
  on_each_isa([&](const Backend& backend, CpuIsa) {
    for (DType dtype : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(name_of(dtype));
      body(backend, dtype);
    }
  });
}

TEST(Attention, MatchesTheFormula) {
  on_each_kernel([](const Backend& backend, DType dtype) {
    struct Case {
      int64_t tokens, heads, kv_heads, head_dim;
    };
    for (const Case& c : {Case{1, 1, 1, 1}, Case{2, 4, 2, 6}, Case{3, 3, 1, 17}, Case{63, 2, 2, 32}, Case{65, 9, 3, 64},
                          Case{130, 8, 1, 16}, Case{150, 3, 3, 80}, Case{200, 2, 1, 128}}) {
      const Sequence any(c.tokens, c.heads, c.kv_heads, c.head_dim, 7), s = dtype == DType::bf16 ? any.rounded() : any;
      // Weights sum to 1, so outputs are near 1; scores and exp round a few times at 6e-8, bf16 weights and, where the scale is
      // no power of 2, queries at 2e-3.
      EXPECT_TRUE(close(s.run(backend, {c.tokens}, dtype), oracle::attention(s.q, s.k, s.v, c.head_dim),
                        dtype == DType::f32 ? 3e-6 : 8e-3, 0))
          << c.tokens << " tokens, " << c.heads << "/" << c.kv_heads << " heads of " << c.head_dim;
    }
  });
}

TEST(Attention, DoesNotDependOnChunksOrThreads) {
  on_each_kernel([](const Backend& backend, DType dtype) {
    for (int64_t heads : {2, 6}) {
      const Sequence s(230, heads, 2, 64, 11);
      const Tensor whole = s.run(backend, {230}, dtype);
      for (int threads : {1, 2, 3}) {
        Threads guard(threads);
        for (const std::vector<int64_t>& chunks :
             {std::vector<int64_t>{230}, {1}, {64}, {100, 1}, {63, 2, 130}, {5, 17}, {229, 1}}) {
          EXPECT_TRUE(same_bits(s.run(backend, chunks, dtype), whole))
              << "chunks of " << chunks.front() << ", " << threads << " threads";
        }
      }
    }
  });
}

TEST(Attention, KeepsSequencesOfARaggedBatchApart) {
  on_each_kernel([](const Backend& backend, DType dtype) {
    Threads guard(2);
    const std::vector<int64_t> lengths{5, 0, 70, 1};
    std::vector<Sequence> sequences;
    std::vector<Cache> caches;
    std::vector<AttentionSpan> spans;
    int64_t rows = 0;
    for (size_t i = 0; i < lengths.size(); ++i) {
      sequences.emplace_back(lengths[i], 6, 3, 32, static_cast<uint32_t>(20 + 10 * i));
      caches.emplace_back(3, 80, 32);
      spans.push_back(caches.back().span(rows, lengths[i], 0));
      rows += lengths[i];
    }
    Tensor q(DType::f32, {rows, 192}), k(DType::f32, {rows, 96}), v(DType::f32, {rows, 96}), out(DType::f32, {rows, 192});
    for (size_t i = 0; i < lengths.size(); ++i) {
      for (auto [to, from] : {std::pair{&q, &sequences[i].q}, {&k, &sequences[i].k}, {&v, &sequences[i].v}}) {
        if (lengths[i] > 0) std::memcpy(to->row<float>(spans[i].row_begin), from->raw(), static_cast<size_t>(from->bytes()));
      }
    }
    backend.attention(q, k, v, spans, 32, dtype, out);
    for (size_t i = 0; i < lengths.size(); ++i) {
      const Tensor alone = sequences[i].run(backend, {100}, dtype);
      EXPECT_TRUE(same_bits(out.rows(spans[i].row_begin, spans[i].row_begin + lengths[i]), alone)) << "sequence " << i;
    }
  });
}

TEST(Attention, ALaterTokenCannotReachAnEarlierOneEvenAsNotANumber) {
  on_each_kernel([](const Backend& backend, DType dtype) {
    Sequence s(90, 4, 2, 32, 5);
    const Tensor before = s.run(backend, {90}, dtype);
    for (float odd : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      s.k.row<float>(71)[3] = odd;
      s.v.row<float>(71)[40] = odd;
      const Tensor after = s.run(backend, {90}, dtype);
      EXPECT_TRUE(same_bits(after.rows(0, 71), before.rows(0, 71)));
      for (int64_t t = 71; t < 90; ++t) {
        EXPECT_FALSE(std::isfinite(after.row<float>(t)[3 * 32 + 8]));  // the value, seen by heads 2 and 3
        // The key, seen by the others; an infinite one may just weigh 0.
        EXPECT_TRUE(std::isnan(after.row<float>(t)[0]) || !std::isnan(odd));
      }
    }
  });
}

TEST(Attention, SurvivesScoresFarApart) {
  on_each_kernel([](const Backend& backend, DType dtype) {
    Sequence s(140, 2, 1, 16, 9);
    for (float& x : s.q.span<float>()) x *= 40.0f;
    for (float& x : s.k.span<float>()) x *= 40.0f;
    if (dtype == DType::bf16) s = s.rounded();
    // Scores reach thousands: their f32 rounding alone (1e-4) passes through exp.
    EXPECT_TRUE(close(s.run(backend, {140}, dtype), oracle::attention(s.q, s.k, s.v, 16), 5e-3, 0));
  });
}

TEST(Attention, RefusesWrongShapes) {
  const auto backend = make_cpu_backend();
  Cache cache(2, 8, 4);
  Tensor out(DType::f32, {3, 16});
  const auto run = [&](const Tensor& q, const Tensor& k, AttentionSpan span, int64_t head_dim) {
    return message_of([&] { backend->attention(q, k, k, {&span, 1}, head_dim, DType::f32, out); });
  };
  EXPECT_THAT(run(random({3, 16}, 1), random({2, 8}, 1), cache.span(0, 3, 0), 4), HasSubstr("attention: k is f32 [2, 8]"));
  EXPECT_THAT(run(random({3, 16}, 1), random({3, 8}, 1), cache.span(0, 3, 0), 5), HasSubstr("multiples of head_dim 5"));
  EXPECT_THAT(run(random({3, 16}, 1), random({3, 12}, 1), cache.span(0, 3, 0), 4),
              HasSubstr("a multiple of the 3 key-value heads"));
  EXPECT_THAT(run(random({3, 16}, 1), random({3, 8}, 1), cache.span(1, 3, 0), 4),
              HasSubstr("rows 1 .. 4, expected them within the batch's 3"));
  EXPECT_THAT(run(random({3, 16}, 1), random({3, 8}, 1), cache.span(0, 3, 6), 4),
              HasSubstr("a cache of 8 tokens, expected room for 6 + 3"));
}

}  // namespace
}  // namespace cmoe

// Every gradient against central differences in double of a plain forward.
#include <fmt/format.h>
#include <gmock/gmock.h>

#include <array>
#include <numeric>

#include "backend/cpu/packed_weight.h"
#include "backend/oracle.h"

namespace cmoe {
namespace {

using oracle::Doubles;
using ::testing::HasSubstr;
using Function = std::function<double(const Doubles&)>;

Doubles doubles(const Tensor& x) { return Doubles(x.span<float>().begin(), x.span<float>().end()); }

// d f / d x by central differences: error about 1e-9 with h = 1e-5 for functions of size 1.
Doubles numeric_gradient(const Function& f, Doubles x) {
  constexpr double h = 1e-5;
  Doubles gradient(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double at = x[i];
    x[i] = at + h;
    const double above = f(x);
    x[i] = at - h;
    gradient[i] = (above - f(x)) / (2 * h);
    x[i] = at;
  }
  return gradient;
}

double dot(const Doubles& a, const Doubles& b) { return std::inner_product(a.begin(), a.end(), b.begin(), 0.0); }

TEST(Gradients, LinearTransposedIsTheProductWithTheWeight) {
  // Shapes around panels (32), pairs, blocks of features and tiles of rows.
  for (const auto& [t, n, k] :
       {std::array<int64_t, 3>{1, 1, 1}, {3, 33, 5}, {15, 64, 31}, {29, 97, 65}, {5, 4100, 40}, {2, 6, 700}}) {
    SCOPED_TRACE(fmt::format("t {} n {} k {}", t, n, k));
    const Tensor dy = oracle::random_exact({t, n}, 1), w = oracle::random_exact({n, k}, 2);
    const Doubles expected = oracle::linear(dy, oracle::transposed(w));
    oracle::on_each_isa([&](const Backend& backend, CpuIsa) {
      for (DType dtype : {DType::f32, DType::bf16}) {
        Tensor dx = Tensor::zeros(DType::f32, {t, k});
        const Weight weight = backend.prepare(w, dtype);
        backend.linear_transposed(dy, weight, dx);
        EXPECT_TRUE(oracle::close(dx, expected, 1e-5, 1e-5)) << name_of(dtype);
        backend.linear_transposed(dy, weight, dx, /*accumulate=*/true);
        Doubles twice = expected;
        for (double& value : twice) value *= 2;
        EXPECT_TRUE(oracle::close(dx, twice, 2e-5, 1e-5)) << name_of(dtype);
      }
    });
  }
}

// The way of weights that another library packed: features back as rows.
TEST(Gradients, PackedWeightsUnpack) {
  const Tensor w = oracle::random_exact({97, 65}, 2);
  oracle::on_each_isa([&](const Backend& backend, CpuIsa) {
    for (DType dtype : {DType::f32, DType::bf16}) {
      const Weight weight = backend.prepare(w, dtype);
      const auto& packed = static_cast<const cpu::PackedWeight&>(weight.impl());
      std::vector<float> rows(static_cast<size_t>((97 + packed.unit()) * 65));
      for (int64_t unit = 0; unit * packed.unit() < 97; ++unit) packed.unpack(unit, rows.data() + unit * packed.unit() * 65);
      for (size_t i = 0; i < static_cast<size_t>(w.size()); ++i) ASSERT_EQ(rows[i], w.span<float>()[i]) << i;
    }
  });
}

TEST(Gradients, RmsNorm) {
  const int64_t t = 3, d = 37;
  const Tensor x = oracle::random({t, d}, 1), weight = oracle::random({d}, 2), dy = oracle::random({t, d}, 3);
  const Doubles w = doubles(weight), c = doubles(dy);
  const Function loss = [&](const Doubles& at) {
    double sum = 0;
    for (int64_t r = 0; r < t; ++r) {
      const size_t row = static_cast<size_t>(r * d);
      double square = 0;
      for (size_t i = 0; i < static_cast<size_t>(d); ++i) square += at[row + i] * at[row + i];
      for (size_t i = 0; i < static_cast<size_t>(d); ++i)
        sum += c[row + i] * at[row + i] * w[i] / std::sqrt(square / static_cast<double>(d) + 1e-5);
    }
    return sum;
  };
  const Doubles expected = numeric_gradient(loss, doubles(x));
  oracle::on_each_isa([&](const Backend& backend, CpuIsa) {
    Tensor dx = Tensor::zeros(DType::f32, x.shape());
    backend.rms_norm_backward(x, weight, 1e-5f, dy, dx);
    EXPECT_TRUE(oracle::close(dx, expected, 2e-6, 1e-5));
  });
}

TEST(Gradients, Swiglu) {
  const Tensor gate = oracle::random({3, 21}, 1, 3.0f), up = oracle::random({3, 21}, 2), dh = oracle::random({3, 21}, 3);
  const Doubles g = doubles(gate), u = doubles(up), c = doubles(dh);
  const auto forward = [&](const Doubles& a, const Doubles& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += c[i] * a[i] / (1 + std::exp(-a[i])) * b[i];
    return sum;
  };
  const Doubles expected_gate = numeric_gradient([&](const Doubles& at) { return forward(at, u); }, g);
  const Doubles expected_up = numeric_gradient([&](const Doubles& at) { return forward(g, at); }, u);
  oracle::on_each_isa([&](const Backend& backend, CpuIsa) {
    Tensor dgate(DType::f32, gate.shape()), dup = dh.clone();
    backend.swiglu_backward(gate, up, dup, dgate, dup);
    EXPECT_TRUE(oracle::close(dgate, expected_gate, 2e-6, 1e-5));
    EXPECT_TRUE(oracle::close(dup, expected_up, 2e-6, 1e-5));
  });
}

// Causal attention of several sequences in double; q [t, heads hd], k and v [t, kv hd].
struct AttentionShape {
  int64_t heads, kv_heads, head_dim;
  std::vector<int64_t> lengths;
};

double attention_loss(const AttentionShape& shape, const Doubles& q, const Doubles& k, const Doubles& v, const Doubles& c) {
  const auto [heads, kv_heads, hd, lengths] = shape;
  double loss = 0;
  int64_t first = 0;
  for (int64_t length : lengths) {
    for (int64_t i = first; i < first + length; ++i) {
      for (int64_t h = 0; h < heads; ++h) {
        Doubles weight;
        double sum = 0;
        const int64_t kv = h / (heads / kv_heads);
        for (int64_t j = first; j <= i; ++j) {
          double score = 0;
          for (int64_t d = 0; d < hd; ++d)
            score += q[static_cast<size_t>((i * heads + h) * hd + d)] * k[static_cast<size_t>((j * kv_heads + kv) * hd + d)];
          weight.push_back(std::exp(score / std::sqrt(static_cast<double>(hd))));
          sum += weight.back();
        }
        for (int64_t j = first; j <= i; ++j) {
          for (int64_t d = 0; d < hd; ++d) {
            loss += c[static_cast<size_t>((i * heads + h) * hd + d)] * weight[static_cast<size_t>(j - first)] / sum *
                    v[static_cast<size_t>((j * kv_heads + kv) * hd + d)];
          }
        }
      }
    }
    first += length;
  }
  return loss;
}

struct AttentionGradients {
  Tensor dq, dk, dv;
};

AttentionGradients attention_gradients(const Backend& backend, const AttentionShape& shape, const Tensor& q, const Tensor& k,
                                       const Tensor& v, const Tensor& dout) {
  std::vector<Tensor> caches;
  std::vector<AttentionSpan> spans;
  int64_t row = 0;
  for (int64_t length : shape.lengths) {
    for (int i = 0; i < 2; ++i) caches.emplace_back(DType::f32, Shape{shape.kv_heads * length * shape.head_dim + 1});
    spans.push_back({row, length, 0, caches[caches.size() - 2].data<float>(), caches.back().data<float>(), length});
    row += length;
  }
  Tensor out(DType::f32, q.shape());
  Tensor log_sum(DType::f32, {q.dim(0), shape.heads});
  backend.attention(q, k, v, spans, shape.head_dim, DType::f32, out, &log_sum);
  AttentionGradients g{Tensor(DType::f32, q.shape()), Tensor(DType::f32, k.shape()), Tensor(DType::f32, v.shape())};
  backend.attention_backward(q, k, v, out, log_sum, dout, spans, shape.head_dim, g.dq, g.dk, g.dv);
  return g;
}

TEST(Gradients, AttentionOfSeveralSequences) {
  const AttentionShape shape{.heads = 6, .kv_heads = 2, .head_dim = 10, .lengths = {3, 0, 5, 1}};
  const Tensor q = oracle::random({9, 60}, 1), k = oracle::random({9, 20}, 2), v = oracle::random({9, 20}, 3),
               dout = oracle::random({9, 60}, 4);
  const Doubles dq_expected = numeric_gradient(
      [&](const Doubles& at) { return attention_loss(shape, at, doubles(k), doubles(v), doubles(dout)); }, doubles(q));
  const Doubles dk_expected = numeric_gradient(
      [&](const Doubles& at) { return attention_loss(shape, doubles(q), at, doubles(v), doubles(dout)); }, doubles(k));
  const Doubles dv_expected = numeric_gradient(
      [&](const Doubles& at) { return attention_loss(shape, doubles(q), doubles(k), at, doubles(dout)); }, doubles(v));
  oracle::on_each_isa([&](const Backend& backend, CpuIsa) {
    const AttentionGradients g = attention_gradients(backend, shape, q, k, v, dout);
    EXPECT_TRUE(oracle::close(g.dq, dq_expected, 2e-6, 1e-5));
    EXPECT_TRUE(oracle::close(g.dk, dk_expected, 2e-6, 1e-5));
    EXPECT_TRUE(oracle::close(g.dv, dv_expected, 2e-6, 1e-5));
  });
}

// Long enough for several blocks of queries and of keys; differences along random directions, as each element costs a forward.
TEST(Gradients, AttentionAcrossBlocks) {
  const AttentionShape shape{.heads = 3, .kv_heads = 1, .head_dim = 34, .lengths = {201, 77}};
  const Tensor q = oracle::random({278, 102}, 1), k = oracle::random({278, 34}, 2), v = oracle::random({278, 34}, 3),
               dout = oracle::random({278, 102}, 4);
  const auto slope = [&](int which) {
    const double h = 1e-4;
    double value = 0;
    for (double sign : {1.0, -1.0}) {
      Doubles x[3] = {doubles(q), doubles(k), doubles(v)};
      const Doubles direction = doubles(oracle::random({static_cast<int64_t>(x[which].size())}, 7));
      for (size_t i = 0; i < direction.size(); ++i) x[which][i] += sign * h * direction[i];
      value += sign * attention_loss(shape, x[0], x[1], x[2], doubles(dout)) / (2 * h);
    }
    return value;
  };
  const double expected[3] = {slope(0), slope(1), slope(2)};
  oracle::on_each_isa([&](const Backend& backend, CpuIsa) {
    const AttentionGradients g = attention_gradients(backend, shape, q, k, v, dout);
    const Tensor* gradients[3] = {&g.dq, &g.dk, &g.dv};
    for (int which = 0; which < 3; ++which) {
      const Doubles direction = doubles(oracle::random({gradients[which]->size()}, 7));
      EXPECT_NEAR(dot(doubles(*gradients[which]), direction), expected[which], 2e-4 * (1 + std::abs(expected[which]))) << which;
    }
  });
}

Doubles log_softmax(const Doubles& z, double tau) {
  double top = -INFINITY, sum = 0;
  for (double value : z) top = std::max(top, value / tau);
  for (double value : z) sum += std::exp(value / tau - top);
  Doubles result;
  for (double value : z) result.push_back(value / tau - top - std::log(sum));
  return result;
}

TEST(Gradients, CrossEntropyWithDistillation) {
  const int64_t t = 4, d = 12, vocab = 301, teacher_d = 9;
  const Tensor x = oracle::random({t, d}, 1), w = oracle::random({vocab, d}, 2), tx = oracle::random({t, teacher_d}, 3),
               tw = oracle::random({vocab, teacher_d}, 4);
  const std::vector<int32_t> targets{5, -1, 300, 0};
  const Doubles z_teacher = oracle::linear(tx, tw);
  for (double tau : {1.0, 2.5}) {
    const auto parts = [&](const Doubles& at, double* nll, double* kl) {
      for (int64_t r = 0; r < t; ++r) {
        if (targets[static_cast<size_t>(r)] < 0) continue;
        Doubles z(static_cast<size_t>(vocab)), z_t(z_teacher.begin() + r * vocab, z_teacher.begin() + (r + 1) * vocab);
        for (int64_t j = 0; j < vocab; ++j) {
          for (int64_t i = 0; i < d; ++i)
            z[static_cast<size_t>(j)] += at[static_cast<size_t>(r * d + i)] * static_cast<double>(w.row<float>(j)[i]);
        }
        *nll -= log_softmax(z, 1)[static_cast<size_t>(targets[static_cast<size_t>(r)])];
        const Doubles p = log_softmax(z, tau), q = log_softmax(z_t, tau);
        for (size_t j = 0; j < p.size(); ++j) *kl += std::exp(q[j]) * (q[j] - p[j]);
      }
    };
    const Doubles expected = numeric_gradient(
        [&](const Doubles& at) {
          double nll = 0, kl = 0;
          parts(at, &nll, &kl);
          return 0.5 * nll + 0.75 * tau * tau * kl;
        },
        doubles(x));
    double nll_expected = 0, kl_expected = 0;
    parts(doubles(x), &nll_expected, &kl_expected);
    oracle::on_each_isa([&](const Backend& backend, CpuIsa) {
      const Weight head = backend.prepare(w, DType::f32), teacher_head = backend.prepare(tw, DType::f32);
      const Backend::LossWeights weights{
          .nll = 0.5f, .kl = 0.75f, .temperature = static_cast<float>(tau), .teacher_x = &tx, .teacher_head = &teacher_head};
      Tensor dx(DType::f32, x.shape());
      Doubles nll(4), kl(4);
      backend.cross_entropy_backward(x, head, targets, weights, nll, kl, dx);
      EXPECT_TRUE(oracle::close(dx, expected, 1e-5, 1e-5));
      EXPECT_NEAR(std::accumulate(nll.begin(), nll.end(), 0.0), nll_expected, 1e-4);
      EXPECT_NEAR(std::accumulate(kl.begin(), kl.end(), 0.0), kl_expected, 1e-4);
      EXPECT_EQ(nll[1], 0);
    });
  }
}

TEST(Gradients, LossEqualsTheForwardOnManyRows) {
  const Tensor x = oracle::random({250, 8}, 1), w = oracle::random({70, 8}, 2);
  std::vector<int32_t> targets(250);
  for (size_t i = 0; i < targets.size(); ++i) targets[i] = static_cast<int32_t>(i % 70);
  const auto backend = make_cpu_backend();
  const Weight head = backend->prepare(w, DType::f32);
  Doubles expected(250), nll(250), kl(250);
  Tensor dx(DType::f32, x.shape());
  backend->cross_entropy(x, head, targets, expected);
  backend->cross_entropy_backward(x, head, targets, {}, nll, kl, dx);
  for (size_t i = 0; i < nll.size(); ++i) EXPECT_NEAR(nll[i], expected[i], 1e-5);
}

TEST(Gradients, ThreadsDoNotReachTheBits) {
  const AttentionShape shape{.heads = 4, .kv_heads = 2, .head_dim = 16, .lengths = {300, 90}};
  const Tensor q = oracle::random({390, 64}, 1), k = oracle::random({390, 32}, 2), v = oracle::random({390, 32}, 3),
               dout = oracle::random({390, 64}, 4), w = oracle::random({64, 500}, 5);
  const auto backend = make_cpu_backend();
  const Weight weight = backend->prepare(w, DType::f32);
  const auto run = [&](int threads) {
    const oracle::Threads use(threads);
    AttentionGradients g = attention_gradients(*backend, shape, q, k, v, dout);
    Tensor dx(DType::f32, {390, 500});
    backend->linear_transposed(dout, weight, dx);
    return std::vector<Tensor>{g.dq, g.dk, g.dv, dx};
  };
  const std::vector<Tensor> one = run(1), three = run(3);
  for (size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(oracle::same_bits(one[i], three[i])) << i;
}

TEST(Gradients, RefuseWrongShapes) {
  const auto backend = make_cpu_backend();
  const Weight weight = backend->prepare(oracle::random({4, 6}, 1), DType::f32);
  Tensor dy(DType::f32, {3, 5}), dx(DType::f32, {3, 6});
  EXPECT_THAT(oracle::message_of([&] { backend->linear_transposed(dy, weight, dx); }),
              HasSubstr("linear_transposed: dy is f32 [3, 5], expected f32 [*, 4]"));
  Tensor q(DType::f32, {2, 8}), k(DType::f32, {2, 4}), log_sum(DType::f32, {2, 2});
  AttentionSpan span{.row_begin = 0, .rows = 2, .past = 1, .key = nullptr, .value = nullptr, .capacity = 3};
  EXPECT_THAT(oracle::message_of([&] { backend->attention_backward(q, k, k, q, log_sum, q, std::span(&span, 1), 4, q, k, k); }),
              HasSubstr("expected whole sequences"));
  Doubles nll(2), kl(2);
  Tensor x(DType::f32, {2, 6});
  EXPECT_THAT(oracle::message_of([&] {
                backend->cross_entropy_backward(x, weight, std::vector<int32_t>{0, 1}, {.kl = 1}, nll, kl, x);
              }),
              HasSubstr("distillation needs the teacher's rows"));
}

}  // namespace
}  // namespace cmoe

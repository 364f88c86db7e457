#include <gmock/gmock.h>

#include <limits>

#include "backend/cpu/onednn.h"
#include "backend/oracle.h"

namespace cmoe {
namespace {

using namespace oracle;
using ::testing::HasSubstr;

Tensor linear(const Backend& backend, const Tensor& x, const Weight& w) {
  Tensor y(DType::f32, {x.dim(0), w.out_features()});
  backend.linear(x, w, y);
  return y;
}

struct Case {
  int64_t rows, n, k;
};
const Case kCases[] = {{1, 1, 1},     {1, 33, 17},  {2, 5, 2},    {3, 64, 130}, {4, 200, 31},  {5, 31, 64},   {7, 130, 3},
                       {14, 96, 129}, {15, 32, 64}, {17, 130, 1}, {29, 65, 77}, {64, 17, 130}, {130, 64, 17}, {357, 34, 20}};

TEST(Linear, IsExactOnExactNumbers) {
  on_each_isa([](const Backend& backend, CpuIsa) {
    for (const Case& c : kCases) {
      const Tensor x = random_exact({c.rows, c.k}, 1), w = random_exact({c.n, c.k}, 2);
      for (DType dtype : {DType::f32, DType::bf16}) {
        EXPECT_TRUE(close(linear(backend, x, backend.prepare(w, dtype)), oracle::linear(x, w), 0, 0))
            << c.rows << " x " << c.n << " x " << c.k << " " << name_of(dtype);
      }
    }
  });
}

TEST(Linear, StaysWithinTheRoundingOfItsType) {
  on_each_isa([](const Backend& backend, CpuIsa isa) {
    const Tensor x = random({20, 1000}, 3), w = random({70, 1000}, 4);
    // f32: 1000 roundings of sums near sqrt(1000) walk randomly, about 32 * 2^-24 * 32 at the worst element times a margin.
    EXPECT_TRUE(close(linear(backend, x, backend.prepare(w, DType::f32)), oracle::linear(x, w), 3e-4, 0));
    // bf16: weights rounded to 8 bits first; where x is rounded too, its 2^-9 relative errors walk over 1000 terms.
    const Tensor rounded = w.to(DType::bf16).to(DType::f32);
    const double tolerance = isa >= CpuIsa::avx512_bf16 ? 32 * 4 * 0x1p-9 : 3e-4;
    EXPECT_TRUE(close(linear(backend, x, backend.prepare(w, DType::bf16)), oracle::linear(x, rounded), tolerance, 0));
    if (isa >= CpuIsa::avx512_bf16) {
      const Tensor rounded_x = x.to(DType::bf16).to(DType::f32);
      EXPECT_TRUE(close(linear(backend, x, backend.prepare(w, DType::bf16)), oracle::linear(rounded_x, rounded), 3e-4, 0));
    }
  });
}

TEST(Linear, RowsDoNotDependOnTheirCompanyOrOnThreads) {
  on_each_isa([](const Backend& backend, CpuIsa isa) {
    const Tensor x = random({400, 150}, 5), w = random({100, 150}, 6);
    for (DType dtype : {DType::f32, DType::bf16}) {
      if (dtype == DType::bf16 && isa == CpuIsa::amx) continue;  // oneDNN promises no such thing
      const Weight weight = backend.prepare(w, dtype);
      const Tensor all = linear(backend, x, weight);
      for (int threads : {1, 2, 3}) {
        Threads guard(threads);
        EXPECT_TRUE(same_bits(linear(backend, x, weight), all)) << threads << " threads";
        for (int64_t rows : {1, 2, 3, 4, 5, 13, 14, 15, 27, 100, 337}) {
          for (int64_t from : {int64_t{0}, 400 - rows}) {
            EXPECT_TRUE(same_bits(linear(backend, x.rows(from, from + rows), weight), all.rows(from, from + rows)))
                << rows << " rows from " << from << ", " << threads << " threads, " << name_of(dtype);
          }
        }
      }
    }
  });
}

TEST(Linear, Avx2AndAvx512AgreeToTheBit) {
  if (cpu_isa() < CpuIsa::avx512) GTEST_SKIP() << "this CPU has no AVX-512";
  const auto narrow = make_cpu_backend(CpuIsa::avx2), wide = make_cpu_backend(CpuIsa::avx512);
  const Tensor x = random({33, 150}, 5), w = random({100, 150}, 6);
  for (DType dtype : {DType::f32, DType::bf16}) {
    EXPECT_TRUE(same_bits(linear(*narrow, x, narrow->prepare(w, dtype)), linear(*wide, x, wide->prepare(w, dtype))));
  }
}

// The path of CPUs with AMX, on any CPU where oneDNN has bf16.
TEST(Linear, OneDnnMultipliesRoundedInputs) {
  if (!cpu::onednn_has_bf16()) GTEST_SKIP() << "oneDNN has no bf16 here";
  for (int threads : {1, 3}) {
    Threads guard(threads);
    for (const Case& c : {Case{1, 1, 1}, Case{3, 70, 33}, Case{17, 385, 40}, Case{64, 576, 64}, Case{130, 1000, 30}}) {
      const Tensor x = random({c.rows, c.k}, 1), w = random({c.n, c.k}, 2).to(DType::bf16);
      const auto packed = cpu::make_onednn_weight(w);
      Tensor y = Tensor::zeros(DType::f32, {c.rows, c.n});
      const Doubles expected = oracle::linear(x.to(DType::bf16).to(DType::f32), w.to(DType::f32));
      const auto pack = [&](int64_t row, int64_t count, void* to) { packed->pack(x.row<float>(row), count, to); };
      cpu::multiply(*packed, c.rows, pack, y.data<float>(), false);
      EXPECT_TRUE(close(y, expected, 1e-4, 0));  // f32 sums of 64 products at most
      cpu::multiply(*packed, c.rows, pack, y.data<float>(), true);
      Doubles twice = expected;
      for (double& value : twice) value *= 2;
      EXPECT_TRUE(close(y, twice, 2e-4, 0));
    }
  }
}

TEST(Linear, AccumulatesOntoY) {
  on_each_isa([](const Backend& backend, CpuIsa) {
    for (const Case& c : kCases) {
      const Tensor x = random_exact({c.rows, c.k}, 1), w = random_exact({c.n, c.k}, 2);
      Tensor y = random_exact({c.rows, c.n}, 3);
      Doubles expected = oracle::linear(x, w);
      for (size_t i = 0; i < expected.size(); ++i) expected[i] += static_cast<double>(y.span<float>()[i]);
      backend.linear(x, backend.prepare(w, DType::f32), y, true);
      EXPECT_TRUE(close(y, expected, 0, 0));
    }
  });
}

TEST(Linear, TakesWeightsOfEveryFloatType) {
  on_each_isa([](const Backend& backend, CpuIsa) {
    const Tensor x = random_exact({3, 40}, 1), w = random_exact({35, 40}, 2);
    for (DType from : {DType::f32, DType::f16, DType::bf16}) {
      for (DType kept : {DType::f32, DType::bf16}) {
        EXPECT_TRUE(close(linear(backend, x, backend.prepare(w.to(from), kept)), oracle::linear(x, w), 0, 0));
      }
    }
  });
}

TEST(Linear, PassesNotANumberAndInfinityOn) {
  on_each_isa([](const Backend& backend, CpuIsa) {
    for (float odd : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      Tensor x = random({3, 50}, 1);
      const Tensor w = random({40, 50}, 2);
      x.row<float>(1)[7] = odd;
      for (DType dtype : {DType::f32, DType::bf16}) {
        const Tensor y = linear(backend, x, backend.prepare(w, dtype));
        for (int64_t j = 0; j < 40; ++j) {
          EXPECT_FALSE(std::isfinite(y.row<float>(1)[j]));
          EXPECT_TRUE(std::isfinite(y.row<float>(0)[j]) && std::isfinite(y.row<float>(2)[j]));
        }
      }
    }
  });
}

TEST(Linear, AcceptsZeroRowsFeaturesAndInputs) {
  const auto backend = make_cpu_backend();
  Tensor y(DType::f32, {0, 8});
  backend->linear(Tensor(DType::f32, {0, 4}), backend->prepare(random({8, 4}, 1), DType::f32), y);
  Tensor no_columns(DType::f32, {3, 0});
  backend->linear(random({3, 4}, 1), backend->prepare(Tensor(DType::f32, {0, 4}), DType::f32), no_columns);
  Tensor zeros = random({3, 8}, 1);
  backend->linear(Tensor(DType::f32, {3, 0}), backend->prepare(Tensor(DType::f32, {8, 0}), DType::f32), zeros);
  for (float value : zeros.span<float>()) EXPECT_EQ(value, 0.0f);
}

TEST(Linear, RefusesWrongShapes) {
  const auto backend = make_cpu_backend();
  const Weight w = backend->prepare(random({8, 4}, 1), DType::f32);
  Tensor y(DType::f32, {3, 8});
  EXPECT_THAT(message_of([&] {
                backend->linear(random({3, 5}, 1), w, y);
              }),
              HasSubstr("linear: x is f32 [3, 5], expected f32 [*, 4]"));
  EXPECT_THAT(message_of([&] {
                backend->linear(random({2, 4}, 1), w, y);
              }),
              HasSubstr("linear: y is f32 [3, 8], expected f32 [2, 8]"));
  EXPECT_THAT(message_of([&] { backend->linear(random({3, 4}, 1).to(DType::bf16), w, y); }), HasSubstr("x is bf16"));
  EXPECT_THAT(message_of([&] { backend->linear(random({3, 4}, 1), Weight(), y); }), HasSubstr("prepare() it first"));
  EXPECT_THAT(message_of([&] { backend->prepare(random({8}, 1), DType::f32); }), HasSubstr("[out_features, in_features]"));
  EXPECT_THAT(message_of([&] { backend->prepare(random({8, 4}, 1), DType::f16); }), HasSubstr("expected f32 or bf16"));
  EXPECT_THAT(message_of([&] { backend->prepare(Tensor(DType::i32, {8, 4}), DType::f32); }), HasSubstr("a weight of i32"));
}

TEST(MultiplyTransposed, EqualsLinearOfTheTransposesToTheBit) {
  on_each_isa([](const Backend& backend, CpuIsa) {
    for (const Case& c : kCases) {
      const Tensor a = random({c.k, c.rows}, 1), b = random({c.k, c.n}, 2);
      Tensor result(DType::f32, {c.rows, c.n});
      backend.multiply_transposed(a, b, result);
      EXPECT_TRUE(same_bits(result, linear(backend, transposed(a), backend.prepare(transposed(b), DType::f32))));
      Tensor twice = result.clone();
      backend.multiply_transposed(a, b, twice, true);
      for (int64_t i = 0; i < result.size(); ++i) EXPECT_EQ(twice.data<float>()[i], 2 * result.data<float>()[i]);
      Threads guard(3);
      Tensor threaded(DType::f32, {c.rows, c.n});
      backend.multiply_transposed(a, b, threaded);
      EXPECT_TRUE(same_bits(threaded, result));
    }
  });
}

TEST(MultiplyTransposed, OfNoTokensIsZero) {
  const auto backend = make_cpu_backend();
  Tensor c = random({3, 5}, 1);
  const Tensor before = c.clone();
  backend->multiply_transposed(Tensor(DType::f32, {0, 3}), Tensor(DType::f32, {0, 5}), c, true);
  EXPECT_TRUE(same_bits(c, before));
  backend->multiply_transposed(Tensor(DType::f32, {0, 3}), Tensor(DType::f32, {0, 5}), c);
  for (float value : c.span<float>()) EXPECT_EQ(value, 0.0f);
}

TEST(MultiplyTransposed, RefusesWrongShapes) {
  const auto backend = make_cpu_backend();
  Tensor c(DType::f32, {3, 5});
  EXPECT_THAT(message_of([&] {
                backend->multiply_transposed(random({4, 3}, 1), random({6, 5}, 1), c);
              }),
              HasSubstr("multiply_transposed: b is f32 [6, 5], expected f32 [4, *]"));
  EXPECT_THAT(message_of([&] {
                backend->multiply_transposed(random({4, 2}, 1), random({4, 5}, 1), c);
              }),
              HasSubstr("multiply_transposed: c is f32 [3, 5], expected f32 [2, 5]"));
}

}  // namespace
}  // namespace cmoe

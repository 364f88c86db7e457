// Products with a short side, and dropout, against plain loops in double.
#include <gmock/gmock.h>

#include "backend/oracle.h"
#include "base/random.h"

namespace cmoe {
namespace {

using namespace oracle;
using ::testing::HasSubstr;

struct Case {
  int64_t rows, n, k;
};
// Short sides of out_features and of in_features, around vectors, groups of 8 and 4, and the limit of 32 with its other side.
const Case kCases[] = {{1, 1, 1},    {2, 8, 576}, {7, 5, 17},  {13, 12, 33}, {100, 16, 64}, {5, 32, 130},
                       {9, 31, 40},  {4, 33, 50}, {3, 576, 8}, {8, 17, 5},   {11, 33, 12},  {50, 64, 16},
                       {5, 130, 32}, {6, 40, 31}, {4, 50, 33}, {40, 7, 7}};

TEST(NarrowProducts, AreExactOnExactNumbers) {
  on_each_isa([](const Backend& backend, CpuIsa) {
    for (const Case& c : kCases) {
      SCOPED_TRACE(std::to_string(c.rows) + " x " + std::to_string(c.n) + " x " + std::to_string(c.k));
      const Tensor x = random_exact({c.rows, c.k}, 1), w = random_exact({c.n, c.k}, 2), dy = random_exact({c.rows, c.n}, 3);
      const Weight weight = backend.prepare_narrow(w);
      Tensor y(DType::f32, {c.rows, c.n}), dx(DType::f32, {c.rows, c.k}), dw(DType::f32, {c.n, c.k});
      for (bool again : {false, true}) {  // the second time onto the first
        backend.linear(x, weight, y, again);
        backend.linear_transposed(dy, weight, dx, again);
        backend.multiply_transposed(dy, x, dw, again);
        const auto expect = [&](Doubles values) {
          for (double& value : values) value *= again ? 2 : 1;
          return values;
        };
        EXPECT_TRUE(close(y, expect(oracle::linear(x, w)), 0, 0));
        EXPECT_TRUE(close(dx, expect(oracle::linear(dy, transposed(w))), 0, 0));
        EXPECT_TRUE(close(dw, expect(oracle::linear(transposed(dy), transposed(x))), 0, 0));
      }
    }
  });
}

TEST(NarrowProducts, RowsDoNotDependOnTheirCompanyOrOnThreads) {
  on_each_isa([](const Backend& backend, CpuIsa) {
    for (const auto& [n, k] : {std::array<int64_t, 2>{8, 576}, {576, 8}, {13, 100}, {100, 13}}) {
      const Tensor x = random({200, k}, 5), dy = random({200, n}, 6);
      const Weight weight = backend.prepare_narrow(random({n, k}, 7));
      Tensor y(DType::f32, {200, n}), dx(DType::f32, {200, k});
      backend.linear(x, weight, y);
      backend.linear_transposed(dy, weight, dx);
      Threads guard(3);
      for (const auto& [begin, end] : {std::array<int64_t, 2>{0, 1}, {3, 10}, {199, 200}, {50, 181}, {0, 200}}) {
        Tensor part(DType::f32, {end - begin, n}), dpart = Tensor::zeros(DType::f32, {end - begin, k});
        backend.linear(x.rows(begin, end), weight, part);
        EXPECT_TRUE(same_bits(part, y.rows(begin, end)));
        backend.linear_transposed(dy.rows(begin, end), weight, dpart, /*accumulate=*/true);
        EXPECT_TRUE(same_bits(dpart, dx.rows(begin, end)));
      }
    }
  });
}

TEST(NarrowProducts, Avx2AndAvx512AgreeToTheBit) {
  if (cpu_isa() < CpuIsa::avx512) GTEST_SKIP() << "needs AVX-512";
  const auto a = make_cpu_backend(CpuIsa::avx2), b = make_cpu_backend(CpuIsa::avx512);
  const Tensor x = random({37, 575}, 1), w = random({11, 575}, 2), dy = random({37, 11}, 3);
  Tensor y[2] = {Tensor(DType::f32, {37, 11}), Tensor(DType::f32, {37, 11})};
  Tensor dx[2] = {Tensor(DType::f32, {37, 575}), Tensor(DType::f32, {37, 575})};
  Tensor dw[2] = {Tensor(DType::f32, {11, 575}), Tensor(DType::f32, {11, 575})};
  for (int i : {0, 1}) {
    const Backend& backend = i == 0 ? *a : *b;
    const Weight weight = backend.prepare_narrow(w);
    backend.linear(x, weight, y[i]);
    backend.linear_transposed(dy, weight, dx[i]);
    backend.multiply_transposed(dy, x, dw[i]);
  }
  EXPECT_TRUE(same_bits(y[0], y[1]));
  EXPECT_TRUE(same_bits(dx[0], dx[1]));
  EXPECT_TRUE(same_bits(dw[0], dw[1]));
}

TEST(NarrowProducts, TakeEmptyInputsAndRefuseWrongShapes) {
  const auto backend = make_cpu_backend();
  Tensor none(DType::f32, {0, 8}), y = random({3, 8}, 1);
  backend->linear(Tensor(DType::f32, {0, 40}), backend->prepare_narrow(random({8, 40}, 1)), none);
  EXPECT_THAT(message_of([&] {
                backend->linear(random({3, 41}, 1), backend->prepare_narrow(random({8, 40}, 1)), y);
              }),
              HasSubstr("linear: x is"));
  EXPECT_THAT(message_of([&] { backend->prepare_narrow(random({8}, 1)); }), HasSubstr("prepare_narrow: weight is"));
}

TEST(Dropout, MasksByTheBitsOfKeyAndPlace) {
  on_each_isa([](const Backend& backend, CpuIsa) {
    for (int64_t d : {1, 3, 16, 33, 576}) {
      SCOPED_TRACE(d);
      const Tensor x = random({7, d}, 1);
      const std::vector<int32_t> rows{5, 0, 123456, 7, 7, 1, 2};
      Tensor y = random({7, d}, 2);
      const Tensor before = y.clone();
      const auto words = static_cast<uint64_t>((d + 3) / 4);
      constexpr float kProbability = 0.25f;  // 16,384 of 65,536
      backend.dropout(x, rows, 99, kProbability, y, /*accumulate=*/true);
      for (int64_t t = 0; t < 7; ++t) {
        for (int64_t i = 0; i < d; ++i) {
          const uint64_t word = static_cast<uint64_t>(rows[static_cast<size_t>(t)]) * words + static_cast<uint64_t>(i / 4);
          const bool kept = (random_bits(99, word) >> (16 * (i % 4)) & 0xffffu) >= 16384;
          const float value = kept ? x.row<float>(t)[i] * static_cast<float>(4.0 / 3) : 0.0f;
          ASSERT_EQ(y.row<float>(t)[i], before.row<float>(t)[i] + value) << t << " " << i;
        }
      }
      Tensor alone(DType::f32, {1, d});
      backend.dropout(x.rows(3, 4), std::vector<int32_t>{7}, 99, kProbability, alone);
      Tensor all(DType::f32, {7, d});
      backend.dropout(x, rows, 99, kProbability, all);
      EXPECT_TRUE(same_bits(alone, all.rows(3, 4)));
    }
  });
}

TEST(Dropout, DropsItsShareAndKeepsTheMean) {
  const auto backend = make_cpu_backend();
  Tensor x(DType::f32, {200, 500}), y(DType::f32, {200, 500});
  std::fill(x.span<float>().begin(), x.span<float>().end(), 1.0f);
  backend->dropout(x, {}, 7, 0.1f, y);
  double sum = 0, dropped = 0;
  for (float value : y.span<float>()) sum += static_cast<double>(value), dropped += value == 0;
  EXPECT_NEAR(dropped / 1e5, 0.1, 0.004);  // 4 standard errors
  EXPECT_NEAR(sum / 1e5, 1.0, 0.005);
}

TEST(Dropout, RefusesWrongArguments) {
  const auto backend = make_cpu_backend();
  Tensor y(DType::f32, {3, 4});
  EXPECT_THAT(message_of([&] { backend->dropout(random({3, 4}, 1), {}, 1, 1.0f, y); }), HasSubstr("expected one in [0, 1)"));
  EXPECT_THAT(message_of([&] {
                backend->dropout(random({3, 4}, 1), std::vector<int32_t>{1}, 1, 0.5f, y);
              }),
              HasSubstr("1 row numbers; expected 3"));
  EXPECT_THAT(message_of([&] { backend->dropout(random({3, 5}, 1), {}, 1, 0.5f, y); }), HasSubstr("dropout: y is"));
}

}  // namespace
}  // namespace cmoe

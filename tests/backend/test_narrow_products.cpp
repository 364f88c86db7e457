// Products with a short side, and dropout, against plain loops in double.
#include <fmt/format.h>
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
      const DropoutMask mask{.row = rows, .key = 99, .p = kProbability};
      backend.dropout(x, mask, y, /*accumulate=*/true);
      for (int64_t t = 0; t < 7; ++t) {
        for (int64_t i = 0; i < d; ++i) {
          const uint64_t word = static_cast<uint64_t>(rows[static_cast<size_t>(t)]) * words + static_cast<uint64_t>(i / 4);
          const bool kept = (random_bits(99, word) >> (16 * (i % 4)) & 0xffffu) >= 16384;
          const float value = kept ? x.row<float>(t)[i] * static_cast<float>(4.0 / 3) : 0.0f;
          ASSERT_EQ(y.row<float>(t)[i], before.row<float>(t)[i] + value) << t << " " << i;
        }
      }
      Tensor alone(DType::f32, {1, d});
      const std::vector<int32_t> seven{7};
      backend.dropout(x.rows(3, 4), {.row = seven, .key = 99, .p = kProbability}, alone);
      Tensor all(DType::f32, {7, d});
      backend.dropout(x, mask, all);
      EXPECT_TRUE(same_bits(alone, all.rows(3, 4)));
    }
  });
}

// Against the plain way: the whole x masked, then each product.
TEST(Dropout, ProductsBehindItAreThoseOfTheMaskedRows) {
  on_each_isa([](const Backend& backend, CpuIsa) {
    for (const auto& [t, d, ranks] : {std::tuple{int64_t{1}, int64_t{3}, std::vector<int64_t>{1}},
                                      {67, 33, {3, 8}},
                                      {130, 200, {8, 5, 16}},
                                      {7, 100, {40, 2}},  // too wide for narrow products
                                      {0, 40, {4}}}) {
      for (float p : {0.0f, 0.25f}) {
        SCOPED_TRACE(fmt::format("t {} d {} p {}", t, d, p));
        std::vector<int32_t> rows;
        for (int64_t i = 0; i < t; ++i) rows.push_back(static_cast<int32_t>(3 * i + 1));
        const DropoutMask mask{.row = rows, .key = 42, .p = p};
        const Tensor x = random({t, d}, 1);
        Tensor dx = random({t, d}, 2), kept(DType::f32, x.shape()), expected_dx = dx.clone(),
               sum = Tensor::zeros(DType::f32, x.shape());
        backend.dropout(x, mask, kept);
        std::vector<Weight> a;
        std::vector<Tensor> u, du, da, expected_u, expected_da;
        for (int64_t rank : ranks) {
          a.push_back(backend.prepare_narrow(random({rank, d}, 3)));
          u.emplace_back(DType::f32, Shape{t, rank});
          du.push_back(random({t, rank}, 4));
          da.push_back(Tensor::zeros(DType::f32, {rank, d}));  // onto what is there the sums go in another order
          expected_u.emplace_back(DType::f32, Shape{t, rank});
          expected_da.push_back(da.back().clone());
          backend.linear(kept, a.back(), expected_u.back());
          backend.multiply_transposed(du.back(), kept, expected_da.back(), /*accumulate=*/true);
          backend.linear_transposed(du.back(), a.back(), sum, /*accumulate=*/true);
        }
        backend.dropout(sum, mask, expected_dx, /*accumulate=*/true);
        backend.dropout_linear(x, mask, a, u);
        backend.dropout_linear_backward(x, mask, a, du, da, dx);
        for (size_t i = 0; i < ranks.size(); ++i) {
          EXPECT_TRUE(same_bits(u[i], expected_u[i])) << i;
          EXPECT_TRUE(same_bits(da[i], expected_da[i])) << i;
        }
        EXPECT_TRUE(close(dx, Doubles(expected_dx.span<float>().begin(), expected_dx.span<float>().end()), 1e-5, 1e-5));
      }
    }
  });
}

TEST(Dropout, DropsItsShareAndKeepsTheMean) {
  const auto backend = make_cpu_backend();
  Tensor x(DType::f32, {200, 500}), y(DType::f32, {200, 500});
  std::fill(x.span<float>().begin(), x.span<float>().end(), 1.0f);
  backend->dropout(x, {.key = 7, .p = 0.1f}, y);
  double sum = 0, dropped = 0;
  for (float value : y.span<float>()) sum += static_cast<double>(value), dropped += value == 0;
  EXPECT_NEAR(dropped / 1e5, 0.1, 0.004);  // 4 standard errors
  EXPECT_NEAR(sum / 1e5, 1.0, 0.005);
}

TEST(Dropout, RefusesWrongArguments) {
  const auto backend = make_cpu_backend();
  Tensor y(DType::f32, {3, 4}), u(DType::f32, {3, 2});
  const std::vector<int32_t> one{1};
  const Weight a = backend->prepare_narrow(random({2, 5}, 1));
  EXPECT_THAT(message_of([&] { backend->dropout(random({3, 4}, 1), {.p = 1.0f}, y); }), HasSubstr("expected one in [0, 1)"));
  EXPECT_THAT(message_of([&] {
                backend->dropout(random({3, 4}, 1), {.row = one, .p = 0.5f}, y);
              }),
              HasSubstr("1 row numbers; expected 3"));
  EXPECT_THAT(message_of([&] { backend->dropout(random({3, 5}, 1), {.p = 0.5f}, y); }), HasSubstr("dropout: y is"));
  EXPECT_THAT(message_of([&] {
                backend->dropout_linear(random({3, 4}, 1), {}, std::span(&a, 1), std::span(&u, 1));
              }),
              HasSubstr("A takes 5 inputs, x has 4"));
  EXPECT_THAT(message_of([&] { backend->dropout_linear_backward(y, {}, {}, std::span(&u, 1), {}, y); }),
              HasSubstr("0 matrices, 1 gradients"));
}

}  // namespace
}  // namespace cmoe

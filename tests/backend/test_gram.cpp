#include <gmock/gmock.h>

#include <numeric>

#include "backend/oracle.h"

namespace cmoe {
namespace {

using namespace oracle;

struct Case {
  int64_t tokens, columns, first, last;
  int64_t step;  // every step-th row is summed
};
const Case kCases[] = {{1, 1, 0, 1, 1},       {5, 3, 1, 2, 2},     {40, 70, 0, 70, 1},    {90, 130, 33, 71, 3},
                       {33, 100, 99, 100, 1}, {17, 65, 5, 64, 20}, {600, 200, 16, 180, 1}};

std::vector<int32_t> listed(const Case& c) {
  std::vector<int32_t> rows;
  for (int64_t t = 0; t < c.tokens; t += c.step) rows.push_back(static_cast<int32_t>(t));
  return rows;
}

TEST(GramRows, AreThoseOfTheGatheredRowsToTheBit) {
  on_each_isa([](const Backend& backend, CpuIsa) {
    for (const Case& c : kCases) {
      const Tensor z = random({c.tokens, c.columns}, 1);
      const std::vector<int32_t> rows = listed(c);
      Tensor gathered(DType::f32, {static_cast<int64_t>(rows.size()), c.columns});
      backend.gather_rows(z, rows, gathered);
      Tensor product(DType::f32, {c.columns, c.columns}), found(DType::f32, {c.last - c.first, c.columns - c.first});
      backend.multiply_transposed(gathered, gathered, product);
      for (int threads : {1, 3}) {
        Threads guard(threads);
        std::fill_n(found.data<float>(), found.size(), 7.0f);
        backend.gram_rows(z, rows, c.first, c.last, found);
        for (int64_t i = c.first; i < c.last; ++i) {
          for (int64_t j = c.first; j < c.columns; ++j) {
            const float value = found.row<float>(i - c.first)[j - c.first], sum = product.row<float>(i)[j];
            EXPECT_TRUE(value == sum || (j < i && value == 0)) << i << ", " << j << ": " << value << ", expected " << sum;
          }
        }
      }
    }
  });
}

TEST(GramRows, OfNoTokensAreZeroAndWrongShapesAreRefused) {
  const auto backend = make_cpu_backend();
  const Tensor z = random({4, 6}, 1);
  Tensor c = random({2, 5}, 2);
  backend->gram_rows(z, {}, 1, 3, c);
  for (float value : c.span<float>()) EXPECT_EQ(value, 0.0f);
  const std::vector<int32_t> beyond{0, 4};
  EXPECT_THAT(message_of([&] { backend->gram_rows(z, beyond, 1, 3, c); }), ::testing::HasSubstr("row 4, expected 0 to 3"));
  EXPECT_THAT(message_of([&] { backend->gram_rows(z, {}, 1, 4, c); }),
              ::testing::HasSubstr("c is f32 [2, 5], expected f32 [3, 5]"));
  EXPECT_THAT(message_of([&] { backend->gram_rows(z, {}, 5, 7, c); }),
              ::testing::HasSubstr("rows 5 to 7, expected them within the 6"));
}

TEST(ColumnMoments, AreAddedInF64) {
  on_each_isa([](const Backend& backend, CpuIsa) {
    for (const auto& [tokens, columns] : {std::pair<int64_t, int64_t>{0, 4}, {1, 1}, {7, 33}, {50, 600}}) {
      const Tensor x = random({tokens, columns}, 1, 100.0f);
      std::vector<double> sum(static_cast<size_t>(columns), 1.0), square(sum);
      std::vector<double> expected_sum(sum), expected_square(sum);
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t j = 0; j < columns; ++j) {
          const double value = x.row<float>(t)[j];
          expected_sum[static_cast<size_t>(j)] += value;
          expected_square[static_cast<size_t>(j)] += value * value;
        }
      }
      backend.add_column_moments(x, sum, square);
      EXPECT_EQ(sum, expected_sum);
      EXPECT_EQ(square, expected_square);
    }
    std::vector<double> few(2);
    EXPECT_THAT(message_of([&] {
                  backend.add_column_moments(random({3, 4}, 1), few, few);
                }),
                ::testing::HasSubstr("2 sums and 2 squares, expected 4 of each"));
  });
}

}  // namespace
}  // namespace cmoe

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "analysis/linear_assignment.h"
#include "analysis/measures.h"
#include "base/random.h"
#include "data/python_random.h"

namespace cmoe {
namespace {

Tensor random_matrix(PythonRandom& random, int64_t rows, int64_t columns, int64_t values) {
  Tensor made(DType::f32, {rows, columns});
  for (float& value : made.span<float>()) value = static_cast<float>(random.below(values)) / static_cast<float>(values) - 0.5f;
  return made;
}

double total(const Tensor& gain, const std::vector<int32_t>& columns) {
  double sum = 0;
  for (size_t i = 0; i < columns.size(); ++i) sum += gain.row<float>(static_cast<int64_t>(i))[columns[i]];
  return sum;
}

TEST(AssignRows, EqualsEveryPermutation) {
  PythonRandom random(5);
  for (int round = 0; round < 200; ++round) {
    const int64_t n = 1 + random.below(6);
    const Tensor gain = random_matrix(random, n, n, round % 2 == 0 ? 4 : 1000);  // with and without ties
    std::vector<int32_t> order(static_cast<size_t>(n));
    std::iota(order.begin(), order.end(), 0);
    double best = -1e9;
    do best = std::max(best, total(gain, order));
    while (std::next_permutation(order.begin(), order.end()));
    std::vector<int32_t> found = assign_rows(gain);
    EXPECT_NEAR(total(gain, found), best, 1e-6);
    std::sort(found.begin(), found.end());
    std::iota(order.begin(), order.end(), 0);
    EXPECT_EQ(found, order);
  }
}

TEST(AssignRows, FindsAHiddenPermutation) {
  PythonRandom random(6);
  const int64_t n = 150;
  Tensor gain = random_matrix(random, n, n, 1 << 20);
  std::vector<int32_t> hidden(static_cast<size_t>(n));
  const std::vector<int64_t> drawn = random.sample(n, n);
  for (size_t i = 0; i < hidden.size(); ++i) {
    hidden[i] = static_cast<int32_t>(drawn[i]);
    gain.row<float>(static_cast<int64_t>(i))[hidden[i]] += 1.0f;
  }
  EXPECT_EQ(assign_rows(gain), hidden);
}

TEST(KendallTau, CountsPairsInOrder) {
  EXPECT_EQ(kendall_tau(std::vector<int32_t>{0, 1, 2, 3}), 1);
  EXPECT_EQ(kendall_tau(std::vector<int32_t>{3, 2, 1, 0}), -1);
  EXPECT_DOUBLE_EQ(kendall_tau(std::vector<int32_t>{1, 0, 2}), 1.0 / 3);
  EXPECT_EQ(kendall_tau(std::vector<int32_t>{0}), 1);
}

TEST(RSquared, OfAStraightLineIsOneAndOfAConstantIsNone) {
  SquareMatrix x(3), y(3);
  x.at(1, 0) = 1;
  x.at(2, 0) = 2;
  x.at(2, 1) = 4;
  y.at(1, 0) = -1;
  y.at(2, 0) = -2;
  y.at(2, 1) = -4;
  EXPECT_DOUBLE_EQ(r_squared_below_diagonal(x, y, 3), 1);
  EXPECT_DOUBLE_EQ(x.mean_below_diagonal(3), 7.0 / 3);
  EXPECT_EQ(x.mean_below_diagonal(1), 0);
  EXPECT_TRUE(std::isnan(r_squared_below_diagonal(x, SquareMatrix(3), 3)));
}

TEST(RowCosines, AreZeroForAZeroRow) {
  Tensor x = Tensor::zeros(DType::f32, {2, 3});
  x.row<float>(0)[1] = 2;
  const SquareMatrix cosines = row_cosines(x);
  EXPECT_EQ(cosines.values, (std::vector<double>{1, 0, 0, 0}));
}

}  // namespace
}  // namespace cmoe

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "base/parallel.h"
#include "carve/least_squares.h"
#include "support/refusal.h"

namespace cmoe {
namespace {

TEST(RidgeSolve, SatisfiesTheNormalEquations) {
  const int64_t n = 70, m = 130, tokens = 200;
  const double lambda = 1e-2;
  std::mt19937 random(3);
  std::normal_distribution<double> normal;
  std::vector<double> x(static_cast<size_t>(tokens * n)), y(static_cast<size_t>(tokens * m));
  for (double& v : x) v = normal(random);
  for (double& v : y) v = normal(random);
  std::vector<double> gram(static_cast<size_t>(n * n), 0.0), cross(static_cast<size_t>(n * m), 0.0);
  double trace = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j)
        gram[static_cast<size_t>(i * n + j)] += x[static_cast<size_t>(t * n + i)] * x[static_cast<size_t>(t * n + j)];
      for (int64_t j = 0; j < m; ++j)
        cross[static_cast<size_t>(i * m + j)] += x[static_cast<size_t>(t * n + i)] * y[static_cast<size_t>(t * m + j)];
    }
  }
  for (int64_t i = 0; i < n; ++i) trace += gram[static_cast<size_t>(i * n + i)];
  const std::vector<double> w = ridge_solve(gram, cross, n, m, lambda);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < m; ++j) {
      double left = lambda * trace / static_cast<double>(n) * w[static_cast<size_t>(i * m + j)];
      for (int64_t k = 0; k < n; ++k) left += gram[static_cast<size_t>(i * n + k)] * w[static_cast<size_t>(k * m + j)];
      EXPECT_NEAR(left, cross[static_cast<size_t>(i * m + j)], 1e-8);
    }
  }
  set_num_threads(3);
  EXPECT_EQ(ridge_solve(gram, cross, n, m, lambda), w) << "threads changed the solution";
  set_num_threads(1);
}

TEST(RidgeSolve, GivesZeroForNoActivationAndRefusesAnIndefiniteMatrix) {
  for (double w : ridge_solve(std::vector<double>(9, 0.0), {0, 0, 0}, 3, 1, 1e-3)) EXPECT_EQ(w, 0.0);
  EXPECT_THAT(refusal([] { ridge_solve({1, 2, 2, 1}, {1, 1}, 2, 1, 0.0); }), ::testing::HasSubstr("not positive definite"));
}

TEST(CenterProducts, RemovesTheMeans) {
  // x = (1, 3), y = (2, 6): sum xy = 20, centred 20 - 4 * 8 / 2 = 4
  std::vector<double> products{20};
  center_products(products, {4}, {8}, 2);
  EXPECT_DOUBLE_EQ(products[0], 4);
}

}  // namespace
}  // namespace cmoe

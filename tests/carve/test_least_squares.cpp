#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "base/parallel.h"
#include "carve/least_squares.h"
#include "support/refusal.h"
#include "support/world.h"

namespace cmoe {
namespace {

NormalEquations random_problem(int64_t n, int64_t m, int64_t tokens) {
  std::mt19937 random(3);
  std::normal_distribution<double> normal;
  std::vector<double> z(static_cast<size_t>(tokens * (n + m)));
  for (double& v : z) v = normal(random);
  NormalEquations equations{.unknowns = n, .right_sides = m};
  equations.products.assign(static_cast<size_t>(n * (n + m)), 0.0);
  for (int64_t t = 0; t < tokens; ++t) {
    const double* row = z.data() + t * (n + m);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n + m; ++j) equations.products[static_cast<size_t>(i * (n + m) + j)] += row[i] * row[j];
    }
  }
  for (int64_t i = 0; i < n + m; ++i) equations.mean.push_back(normal(random));
  return equations;
}

TEST(RidgeFit, SatisfiesTheNormalEquations) {
  const int64_t n = 70, m = 130;
  const double lambda = 1e-2;
  const NormalEquations equations = random_problem(n, m, 200);
  const auto product = [&](int64_t i, int64_t j) { return equations.products[static_cast<size_t>(i * (n + m) + j)]; };
  double trace = 0;
  for (int64_t i = 0; i < n; ++i) trace += product(i, i);
  const LinearFit fit = ridge_fit(*make_cpu_backend(), equations, lambda, test_world());
  for (int64_t j = 0; j < m; ++j) {
    double intercept = equations.mean[static_cast<size_t>(n + j)];
    for (int64_t i = 0; i < n; ++i) {
      const double weight = fit.weight[static_cast<size_t>(i * m + j)];
      intercept -= weight * equations.mean[static_cast<size_t>(i)];
      double left = lambda * trace / static_cast<double>(n) * weight;
      for (int64_t k = 0; k < n; ++k) left += product(i, k) * fit.weight[static_cast<size_t>(k * m + j)];
      EXPECT_NEAR(left, product(i, n + j), 1e-8);
    }
    EXPECT_NEAR(fit.intercept[static_cast<size_t>(j)], intercept, 1e-12);
  }
}

TEST(RidgeFit, IsTheSameOnAnyNumberOfRanksAndThreads) {
  const auto backend = make_cpu_backend();
  const auto alone = test_world().split(test_world().rank());
  for (const int64_t m : {1, 5, 130}) {
    const NormalEquations equations = random_problem(50, m, 90);
    const LinearFit many = ridge_fit(*backend, equations, 1e-3, test_world()),
                    one = ridge_fit(*backend, equations, 1e-3, *alone);
    EXPECT_EQ(many.weight, one.weight);
    EXPECT_EQ(many.intercept, one.intercept);
    set_num_threads(3);
    EXPECT_EQ(ridge_fit(*backend, equations, 1e-3, *alone).weight, one.weight) << "threads changed the solution";
    set_num_threads(1);
  }
}

TEST(RidgeFit, GivesTheMeanForNoActivationAndRefusesAnIndefiniteMatrix) {
  const auto backend = make_cpu_backend();
  const NormalEquations nothing{
      .unknowns = 3, .right_sides = 1, .products = std::vector<double>(12, 0.0), .mean = {0, 0, 0, 2.5}};
  const LinearFit fit = ridge_fit(*backend, nothing, 1e-3, test_world());
  EXPECT_EQ(fit.weight, (std::vector<double>{0, 0, 0}));
  EXPECT_EQ(fit.intercept, (std::vector<double>{2.5}));
  const NormalEquations indefinite{.unknowns = 2, .right_sides = 1, .products = {1, 2, 1, 2, 1, 1}, .mean = {0, 0, 0}};
  EXPECT_THAT(refusal([&] { ridge_fit(*backend, indefinite, 0.0, test_world()); }),
              ::testing::HasSubstr("least squares: the 2 x 2 matrix is not positive definite at lambda 0"));
}

}  // namespace
}  // namespace cmoe

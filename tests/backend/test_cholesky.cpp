#include <gmock/gmock.h>

#include <Eigen/Cholesky>
#include <Eigen/QR>
#include <limits>

#include "backend/oracle.h"

namespace cmoe {
namespace {

using namespace oracle;
using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

Matrix random_matrix(int64_t rows, int64_t columns, uint32_t seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal;
  return Matrix::NullaryExpr(rows, columns, [&] { return normal(engine); });
}

// Symmetric, with eigenvalues from 1 down to 1 / condition.
Matrix positive_definite(int64_t n, double condition, uint32_t seed) {
  const Eigen::HouseholderQR<Matrix> qr(random_matrix(n, n, seed));
  const Matrix q = qr.householderQ();
  Eigen::VectorXd values(n);
  for (int64_t i = 0; i < n; ++i)
    values[i] = std::pow(condition, -static_cast<double>(i) / static_cast<double>(std::max<int64_t>(n - 1, 1)));
  const Matrix a = q * values.asDiagonal() * q.transpose();
  return (a + a.transpose()) / 2;
}

// [A | B], with rubbish where nothing is to be read.
Tensor system_of(const Matrix& a, const Matrix& b) {
  Tensor system(DType::f64, {a.rows(), a.cols() + b.cols()});
  for (int64_t i = 0; i < a.rows(); ++i) {
    for (int64_t j = 0; j < a.cols(); ++j)
      system.row<double>(i)[j] = j >= i ? a(i, j) : std::numeric_limits<double>::quiet_NaN();
    for (int64_t j = 0; j < b.cols(); ++j) system.row<double>(i)[a.cols() + j] = b(i, j);
  }
  return system;
}

Matrix solution_of(const Tensor& system) {
  const int64_t n = system.dim(0);
  return Matrix::NullaryExpr(n, system.dim(1) - n, [&](int64_t i, int64_t j) { return system.row<double>(i)[n + j]; });
}

Matrix solve(const Backend& backend, const Matrix& a, const Matrix& b) {
  Tensor system = system_of(a, b);
  EXPECT_TRUE(backend.solve_positive_definite(system));
  return solution_of(system);
}

TEST(SolvePositiveDefinite, EqualsEigen) {
  on_each_isa([](const Backend& backend, CpuIsa) {
    for (const auto& [n, m] :
         {std::pair<int64_t, int64_t>{1, 1}, {3, 0}, {7, 5}, {8, 16}, {40, 33}, {128, 1}, {129, 17}, {300, 50}}) {
      const Matrix a = positive_definite(n, 100, 1), b = random_matrix(n, m, 2);
      const Matrix x = solve(backend, a, b), expected = m > 0 ? Matrix(a.llt().solve(b)) : b;
      // condition 100 times the rounding of some hundred terms
      if (m == 0) continue;
      EXPECT_LT((x - expected).cwiseAbs().maxCoeff(), 1e-11 * expected.cwiseAbs().maxCoeff()) << n << ", " << m;
    }
  });
}

TEST(SolvePositiveDefinite, LeavesTheFactor) {
  const Matrix a = positive_definite(150, 1e4, 5);
  Tensor system = system_of(a, Matrix(150, 0));
  ASSERT_TRUE(make_cpu_backend()->solve_positive_definite(system));
  Matrix u = Matrix::Zero(150, 150);
  for (int64_t i = 0; i < 150; ++i) {
    for (int64_t j = i; j < 150; ++j) u(i, j) = system.row<double>(i)[j];
  }
  EXPECT_LT((u.transpose() * u - a).cwiseAbs().maxCoeff(), 1e-14);
}

// The residual of a backward stable solve does not know the condition: |A x - b| is the rounding of |A| |x|.
TEST(SolvePositiveDefinite, IsAsGoodAsEigenOnIllConditionedMatrices) {
  on_each_isa([](const Backend& backend, CpuIsa) {
    for (const double condition : {1e6, 1e10, 1e13}) {
      const Matrix a = positive_definite(200, condition, 3), b = random_matrix(200, 20, 4);
      const Matrix x = solve(backend, a, b), eigen = a.llt().solve(b);
      const double residual = (a * x - b).cwiseAbs().maxCoeff(), of_eigen = (a * eigen - b).cwiseAbs().maxCoeff();
      EXPECT_LT(residual, 4 * of_eigen) << condition;
      EXPECT_LT(residual, 1e-14 * x.cwiseAbs().maxCoeff()) << condition;
    }
  });
}

TEST(SolvePositiveDefinite, ColumnsDoNotDependOnTheirCompanyOrOnThreads) {
  on_each_isa([](const Backend& backend, CpuIsa) {
    const Matrix a = positive_definite(180, 1e3, 6), b = random_matrix(180, 70, 7);
    const Matrix all = solve(backend, a, b);
    for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 1}, {1, 16}, {13, 40}, {69, 1}})
      EXPECT_EQ(solve(backend, a, b.middleCols(first, count)), all.middleCols(first, count)) << first << ", " << count;
    Threads guard(3);
    EXPECT_EQ(solve(backend, a, b), all);
  });
}

TEST(SolvePositiveDefinite, Avx2AndAvx512AgreeToTheBit) {
  if (cpu_isa() < CpuIsa::avx512) GTEST_SKIP() << "this CPU has no AVX-512";
  const Matrix a = positive_definite(150, 1e3, 9), b = random_matrix(150, 30, 10);
  EXPECT_EQ(solve(*make_cpu_backend(CpuIsa::avx2), a, b), solve(*make_cpu_backend(CpuIsa::avx512), a, b));
}

TEST(SolvePositiveDefinite, SaysNoToAnIndefiniteMatrix) {
  on_each_isa([](const Backend& backend, CpuIsa) {
    for (const int64_t bad : {0, 5, 127, 128, 170}) {
      for (const double value :
           {0.0, -1.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
        Matrix a = Matrix::Identity(171, 171);
        a(bad, bad) = value;
        Tensor system = system_of(a, Matrix::Ones(171, 2));
        EXPECT_FALSE(backend.solve_positive_definite(system)) << bad << ": " << value;
      }
    }
    // of rank 20: rounding leaves pivots near zero, of either sign
    const Matrix thin = random_matrix(20, 60, 8);
    Tensor system = system_of(thin.transpose() * thin - 1e-9 * Matrix::Identity(60, 60), Matrix(60, 0));
    EXPECT_FALSE(backend.solve_positive_definite(system));
  });
}

TEST(SolvePositiveDefinite, AcceptsNothingAndRefusesWrongShapes) {
  const auto backend = make_cpu_backend();
  Tensor nothing(DType::f64, {0, 3}), narrow(DType::f64, {3, 2}), f32(DType::f32, {3, 4});
  EXPECT_TRUE(backend->solve_positive_definite(nothing));
  EXPECT_THAT(message_of([&] { backend->solve_positive_definite(narrow); }),
              ::testing::HasSubstr("the system is f64 [3, 2], expected f64 [n, n + m]"));
  EXPECT_THAT(message_of([&] { backend->solve_positive_definite(f32); }), ::testing::HasSubstr("the system is f32 [3, 4]"));
}

}  // namespace
}  // namespace cmoe

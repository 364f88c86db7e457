#include "analysis/measures.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/parallel.h"

namespace cmoe {

double SquareMatrix::mean_below_diagonal(int64_t count) const {
  double sum = 0;
  for (int64_t i = 1; i < count; ++i) {
    for (int64_t j = 0; j < i; ++j) sum += at(i, j);
  }
  return count > 1 ? sum / static_cast<double>(count * (count - 1) / 2) : 0;
}

double dot(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

SquareMatrix row_cosines(const Tensor& x) {
  const int64_t n = x.dim(0);
  const auto row = [&](int64_t i) { return std::span<const float>(x.row<float>(i), static_cast<size_t>(x.dim(1))); };
  SquareMatrix cosines(n);
  parallel_for(n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j <= i; ++j) cosines.at(i, j) = dot(row(i), row(j));
    }
  });
  std::vector<double> length(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) length[static_cast<size_t>(i)] = std::sqrt(cosines.at(i, i));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      const double scale = length[static_cast<size_t>(i)] * length[static_cast<size_t>(j)];
      cosines.at(i, j) = cosines.at(j, i) = scale > 0 ? cosines.at(i, j) / scale : 0;
    }
  }
  return cosines;
}

Tensor row_means(std::span<const Tensor> groups) {
  const int64_t d = groups[0].dim(1);
  Tensor means(DType::f32, {static_cast<int64_t>(groups.size()), d});
  std::vector<double> sum(static_cast<size_t>(d));
  for (size_t g = 0; g < groups.size(); ++g) {
    std::fill(sum.begin(), sum.end(), 0.0);
    for (int64_t i = 0; i < groups[g].dim(0); ++i) {
      const float* row = groups[g].row<float>(i);
      for (size_t j = 0; j < sum.size(); ++j) sum[j] += row[j];
    }
    for (size_t j = 0; j < sum.size(); ++j)
      means.row<float>(static_cast<int64_t>(g))[j] = static_cast<float>(sum[j] / static_cast<double>(groups[g].dim(0)));
  }
  return means;
}

double kendall_tau(std::span<const int32_t> permutation) {
  const auto n = static_cast<int64_t>(permutation.size());
  if (n < 2) return 1;
  int64_t concordant = 0;
  for (size_t i = 0; i < permutation.size(); ++i) {
    for (size_t j = 0; j < i; ++j) concordant += permutation[j] < permutation[i];
  }
  const int64_t pairs = n * (n - 1) / 2;
  return static_cast<double>(2 * concordant - pairs) / static_cast<double>(pairs);
}

double r_squared_below_diagonal(const SquareMatrix& x, const SquareMatrix& y, int64_t count) {
  const double mean_x = x.mean_below_diagonal(count), mean_y = y.mean_below_diagonal(count);
  double xx = 0, yy = 0, xy = 0;
  for (int64_t i = 1; i < count; ++i) {
    for (int64_t j = 0; j < i; ++j) {
      const double dx = x.at(i, j) - mean_x, dy = y.at(i, j) - mean_y;
      xx += dx * dx;
      yy += dy * dy;
      xy += dx * dy;
    }
  }
  return xx > 0 && yy > 0 ? xy * xy / (xx * yy) : std::numeric_limits<double>::quiet_NaN();
}

std::vector<std::array<double, 2>> principal_components(const Tensor& x) {
  const int64_t n = x.dim(0), d = x.dim(1);
  Eigen::MatrixXd z(n, d);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < d; ++j) z(i, j) = x.row<float>(i)[j];
  }
  for (int64_t j = 0; j < d; ++j) {
    z.col(j).array() -= z.col(j).mean();
    const double deviation = std::sqrt(z.col(j).squaredNorm() / static_cast<double>(n));
    z.col(j) *= deviation > 0 ? 1 / deviation : 0;
  }
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(z * z.transpose());
  std::vector<std::array<double, 2>> components(static_cast<size_t>(n), {0, 0});
  for (int64_t c = 0; c < std::min<int64_t>(2, n); ++c) {
    Eigen::VectorXd component =
        solver.eigenvectors().col(n - 1 - c) * std::sqrt(std::max(0.0, solver.eigenvalues()(n - 1 - c)));
    Eigen::Index largest = 0;
    component.cwiseAbs().maxCoeff(&largest);
    if (component(largest) < 0) component = -component;
    for (int64_t i = 0; i < n; ++i) components[static_cast<size_t>(i)][static_cast<size_t>(c)] = component(i);
  }
  return components;
}

}  // namespace cmoe

#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "tensor/tensor.h"

namespace cmoe {

/// [n, n] f64, by value.
struct SquareMatrix {
  int64_t n = 0;
  std::vector<double> values;

  SquareMatrix() = default;
  explicit SquareMatrix(int64_t size) : n(size), values(static_cast<size_t>(size * size), 0.0) {}
  double& at(int64_t i, int64_t j) { return values[static_cast<size_t>(i * n + j)]; }
  double at(int64_t i, int64_t j) const { return values[static_cast<size_t>(i * n + j)]; }
  /// Mean over i > j of the first `count` rows; 0 for fewer than two.
  double mean_below_diagonal(int64_t count) const;
};

/// sum a_i b_i in f64.
double dot(std::span<const float> a, std::span<const float> b);
/// Cosines of all pairs of rows of x [n, d] f32; 0 where a row is zero.
SquareMatrix row_cosines(const Tensor& x);
/// Means of groups of rows: the mean of each tensor's rows, [groups, d] f32.
Tensor row_means(std::span<const Tensor> groups);
/// Kendall's tau of a permutation against the identity: (concordant - discordant pairs) / all pairs; 1 for fewer than two.
double kendall_tau(std::span<const int32_t> permutation);
/// Squared correlation (R^2 of the least-squares line) of the pairs below the diagonal; not a number when one of them is
/// constant.
double r_squared_below_diagonal(const SquareMatrix& x, const SquareMatrix& y, int64_t count);
/// First two principal components of the rows of x [n, d], each feature standardised (constant features left out): [n][2]. The
/// sign is such that each component's entry of largest size is positive.
std::vector<std::array<double, 2>> principal_components(const Tensor& x);

}  // namespace cmoe

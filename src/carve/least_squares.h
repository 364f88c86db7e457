#pragma once

#include <cstdint>
#include <vector>

namespace cmoe {

/// Solves (G + lambda * mean(diag G) * I) W = C for W: G [n, n] symmetric positive semi-definite, C [n, m], row-major f64, from
/// sums over tokens. Columns are solved in fixed blocks, so the result does not depend on threads.
/// @return W [n, m] row-major.
/// @throws Error when the matrix is not positive definite even so (a neuron with non-finite activations, or lambda <= 0).
std::vector<double> ridge_solve(std::vector<double> gram, const std::vector<double>& right, int64_t n, int64_t m,
                                double lambda);

/// Sums of products about the means: G_ij - s_i t_j / tokens. `s` [n] and `t` [m] are column sums.
void center_products(std::vector<double>& products, const std::vector<double>& s, const std::vector<double>& t, int64_t tokens);

}  // namespace cmoe

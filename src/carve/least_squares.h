#pragma once

#include <vector>

#include "backend/backend.h"
#include "carve/normal_equations.h"
#include "comm/communicator.h"

namespace cmoe {

/// y = W^T x + c, for x [n] and y [m].
struct LinearFit {
  std::vector<double> weight;     ///< W [n, m] row-major
  std::vector<double> intercept;  ///< c [m] = mean y - W^T mean x
};

/// Ridge regression: W = (G + lambda mean(diag G) I)^-1 C of the normal equations [G | C], f64, by Cholesky's factorisation.
/// Every rank factors G and solves its share of the right sides; each has its own sums, so W is the same to the bit for any
/// number of ranks and threads. Collective.
/// @throws Error when the matrix is not positive definite even so (lambda <= 0).
LinearFit ridge_fit(const Backend& backend, const NormalEquations& equations, double lambda, Communicator& comm);

}  // namespace cmoe

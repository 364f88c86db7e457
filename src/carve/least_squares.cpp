#include "carve/least_squares.h"

#include <algorithm>

#include "base/error.h"
#include "base/parallel.h"
#include "data/windows.h"

namespace cmoe {
namespace {

// [G + ridge I | columns [begin, end) of C].
Tensor system_of(const NormalEquations& equations, double ridge, int64_t begin, int64_t end) {
  const int64_t n = equations.unknowns, width = n + equations.right_sides;
  Tensor system(DType::f64, {n, n + end - begin});
  parallel_for(n, 32, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const double* from = equations.products.data() + i * width;
      double* to = system.row<double>(i);
      std::fill_n(to, i, 0.0);
      std::copy(from + i, from + n, to + i);
      std::copy(from + n + begin, from + n + end, to + n);
      to[i] += ridge;
    }
  });
  return system;
}

// Columns [begin, end) of the solution of each rank, [n, end - begin], side by side: [n, m].
std::vector<double> gather_solution(const Tensor& system, int64_t n, int64_t m, Communicator& comm) {
  const int64_t share = system.dim(1) - n;
  std::vector<double> mine(static_cast<size_t>(n * share));
  for (int64_t i = 0; i < n; ++i) std::copy_n(system.row<double>(i) + n, share, mine.data() + i * share);
  if (comm.size() == 1) return mine;
  const std::vector<double> all = comm.all_gather_v(std::span<const double>(mine));
  std::vector<double> solution(static_cast<size_t>(n * m));
  const double* from = all.data();
  for (int rank = 0; rank < comm.size(); ++rank) {
    const auto [begin, end] = shard_of(m, rank, comm.size());
    for (int64_t i = 0; i < n; ++i, from += end - begin) std::copy_n(from, end - begin, solution.data() + i * m + begin);
  }
  return solution;
}

}  // namespace

LinearFit ridge_fit(const Backend& backend, const NormalEquations& equations, double lambda, Communicator& comm) {
  const int64_t n = equations.unknowns, m = equations.right_sides;
  double trace = 0;
  for (int64_t i = 0; i < n; ++i) trace += equations.products[static_cast<size_t>(i * (n + m) + i)];
  const double ridge = trace == 0 ? 1.0 : lambda * trace / static_cast<double>(n);  // no activation at all: W = 0
  const auto [begin, end] = shard_of(m, comm.rank(), comm.size());
  Tensor system = system_of(equations, ridge, begin, end);
  CMOE_CHECK(backend.solve_positive_definite(system),
             "least squares: the {} x {} matrix is not positive definite at lambda {}; expected lambda > 0", n, n, lambda);
  LinearFit fit{.weight = gather_solution(system, n, m, comm),
                .intercept = std::vector<double>(equations.mean.begin() + n, equations.mean.end())};
  for (int64_t i = 0; i < n; ++i) {
    const double mean = equations.mean[static_cast<size_t>(i)];
    for (int64_t j = 0; j < m; ++j) fit.intercept[static_cast<size_t>(j)] -= mean * fit.weight[static_cast<size_t>(i * m + j)];
  }
  return fit;
}

}  // namespace cmoe

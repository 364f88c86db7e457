#include "carve/least_squares.h"

#include <Eigen/Cholesky>

#include "base/error.h"
#include "base/parallel.h"

namespace cmoe {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

std::vector<double> ridge_solve(std::vector<double> gram, const std::vector<double>& right, int64_t n, int64_t m,
                                double lambda) {
  Eigen::Map<RowMajor> g(gram.data(), n, n);
  const double trace = g.trace();
  g.diagonal().array() +=
      trace == 0 ? 1.0 : lambda * trace / static_cast<double>(n);  // no activation at all: any ridge gives W = 0
  Eigen::LLT<Eigen::Ref<RowMajor>> cholesky(g);                    // in place
  CMOE_CHECK(cholesky.info() == Eigen::Success,
             "least squares: the {} x {} matrix is not positive definite at lambda {}; expected lambda > 0", n, n, lambda);
  std::vector<double> solution(right);
  Eigen::Map<RowMajor> w(solution.data(), n, m);
  constexpr int64_t kColumns = 64;
  parallel_for(m, kColumns, [&](int64_t begin, int64_t end) {
    Eigen::MatrixXd block = w.middleCols(begin, end - begin);
    cholesky.solveInPlace(block);
    w.middleCols(begin, end - begin) = block;
  });
  return solution;
}

void center_products(std::vector<double>& products, const std::vector<double>& s, const std::vector<double>& t,
                     int64_t tokens) {
  for (size_t i = 0; i < s.size(); ++i) {
    for (size_t j = 0; j < t.size(); ++j) products[i * t.size() + j] -= s[i] * t[j] / static_cast<double>(tokens);
  }
}

}  // namespace cmoe

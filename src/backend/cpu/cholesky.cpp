// Blocked Cholesky, right-looking, over the rows of [A | B]; B's columns ride along, which solves U^T Y = B on the way.
//   for each block of rows k:   A_kk = U_kk^T U_kk
//                               U_kj = U_kk^-T A_kj                    for the columns j to the right
//                               A_ij -= U_ki^T U_kj                    for the rows i below and the columns j >= i
//   then from the last block:   X_k = U_kk^-1 Y_k,   Y_i -= U_ik X_k   for the rows i above
#include <algorithm>
#include <cstring>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/packed_weight.h"
#include "base/error.h"
#include "base/parallel.h"

namespace cmoe::cpu {
namespace {

using kernels::kPanelF64;

constexpr int64_t kBlock = 128;        // rows of a block: its share of a panel lies in the first-level cache
constexpr int64_t kPanelsAtOnce = 24;  // these in the second

class BlockedCholesky {
 public:
  BlockedCholesky(const kernels::F64& kernels, Tensor& system)
      : kernels_(kernels), n_(system.dim(0)), columns_(system.dim(1)), a_(system.data<double>()) {
    diagonal_ = Tensor(DType::f64, {kBlock, kBlock});
    const int64_t panels = (columns_ + kPanelF64 - 1) / kPanelF64;
    panels_ = Tensor(DType::f64, {panels, kBlock * kPanelF64});
    tiles_ = Tensor(DType::f64, {n_ + kernels.tile_rows, kBlock});
  }

  bool factor() {
    for (int64_t k = 0; k < n_; k += kBlock) {
      const int64_t rows = std::min(kBlock, n_ - k), right = k + rows;
      load_diagonal(k, rows);
      double* u = diagonal_.data<double>();
      if (kernels_.factor(u, kBlock, padded(rows)) >= 0) return false;
      for (int64_t i = 0; i < rows; ++i) std::copy(u + i * kBlock + i, u + i * kBlock + rows, row(k + i) + k + i);
      solve_panels(k, rows, right, kernels_.solve_upper_transposed);
      subtract(right, n_ - right, rows, right, [&](int64_t i, int64_t count, double* to) {
        for (int64_t l = 0; l < rows; ++l) std::copy_n(row(k + l) + i, count, to + l * count);
      });
    }
    return true;
  }

  void substitute_back() {
    for (int64_t k = (n_ - 1) / kBlock * kBlock; k >= 0; k -= kBlock) {
      const int64_t rows = std::min(kBlock, n_ - k);
      load_diagonal(k, rows);
      solve_panels(k, rows, n_, kernels_.solve_upper);
      subtract(0, k, rows, n_, [&](int64_t i, int64_t count, double* to) {
        for (int64_t r = 0; r < count; ++r) {
          for (int64_t l = 0; l < rows; ++l) to[l * count + r] = row(i + r)[k + l];
        }
      });
    }
  }

 private:
  double* row(int64_t i) const { return a_ + i * columns_; }
  static int64_t padded(int64_t rows) {
    return (rows + kernels::kSolveMultiple - 1) / kernels::kSolveMultiple * kernels::kSolveMultiple;
  }

  // The upper triangle of a diagonal block, then the identity.
  void load_diagonal(int64_t k, int64_t rows) {
    double* to = diagonal_.data<double>();
    std::fill_n(to, kBlock * kBlock, 0.0);
    for (int64_t i = 0; i < rows; ++i) std::copy(row(k + i) + k + i, row(k + i) + k + rows, to + i * kBlock + i);
    for (int64_t i = rows; i < kBlock; ++i) to[i * kBlock + i] = 1;
  }

  // Columns from `column` on of the block's rows become panels, solved, and go back.
  void solve_panels(int64_t k, int64_t rows, int64_t column,
                    void (*solve)(const double* u, int64_t ldu, int64_t n, double* panel)) {
    parallel_for((columns_ - column + kPanelF64 - 1) / kPanelF64, 4, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        const int64_t at = column + p * kPanelF64, width = std::min<int64_t>(kPanelF64, columns_ - at);
        double* to = panel(p);
        std::fill_n(to, kBlock * kPanelF64, 0.0);
        for (int64_t i = 0; i < rows; ++i) std::copy_n(row(k + i) + at, width, to + i * kPanelF64);
        solve(diagonal_.data<double>(), kBlock, padded(rows), to);
        for (int64_t i = 0; i < rows; ++i) std::copy_n(to + i * kPanelF64, width, row(k + i) + at);
      }
    });
  }

  // Rows [first, first + count), columns from `column` on and not left of the diagonal, less the product of packed rows and
  // the panels.
  template <class Pack>
  void subtract(int64_t first, int64_t count, int64_t k, int64_t column, const Pack& pack) {
    const RowTiles tiles(count, kernels_.tile_rows);
    if (tiles.count == 0) return;
    parallel_for(tiles.count, 4, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) pack(first + t * tiles.height, tiles.rows_of(t), tile(t, tiles.height));
    });
    const int64_t panels = (columns_ - column + kPanelF64 - 1) / kPanelF64;
    for (int64_t p0 = 0; p0 < panels; p0 += kPanelsAtOnce) {
      parallel_for(tiles.count, 2, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          const int64_t i = first + t * tiles.height;
          for (int64_t p = p0; p < std::min(panels, p0 + kPanelsAtOnce); ++p) {
            const int64_t at = column + p * kPanelF64, width = std::min<int64_t>(kPanelF64, columns_ - at);
            if (at + width <= i) continue;
            kernels_.subtract_tile(tile(t, tiles.height), tiles.rows_of(t), panel(p), k, row(i) + at, columns_, width);
          }
        }
      });
    }
  }

  double* panel(int64_t p) { return panels_.row<double>(p); }
  double* tile(int64_t t, int64_t height) { return tiles_.data<double>() + t * height * kBlock; }

  const kernels::F64& kernels_;
  int64_t n_, columns_;
  double* a_;
  Tensor diagonal_, panels_, tiles_;
};

}  // namespace

bool CpuBackend::solve_positive_definite(Tensor& system) const {
  CMOE_CHECK(system.dtype() == DType::f64 && system.shape().size() == 2 && system.dim(1) >= system.dim(0),
             "solve_positive_definite: the system is {} {}, expected f64 [n, n + m]", name_of(system.dtype()),
             to_string(system.shape()));
  if (system.dim(0) == 0) return true;
  BlockedCholesky cholesky(table_.f64, system);
  if (!cholesky.factor()) return false;
  cholesky.substitute_back();
  return true;
}

}  // namespace cmoe::cpu

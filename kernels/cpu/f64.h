#pragma once

#include <cstdint>

namespace cmoe::kernels {

/// Columns of one f64 panel: [k][kPanelF64], columns beyond the matrix zero.
inline constexpr int kPanelF64 = 16;
/// solve_upper() and solve_upper_transposed() take blocks of a multiple of this many rows.
inline constexpr int kSolveMultiple = 8;

/// The pieces of a blocked Cholesky factorisation A = U^T U and of the solves with it, f64, row-major. Vector lanes run over
/// columns and every element has its own sums in a fixed order, so the split over threads does not reach the bits, and neither
/// do the other columns.
struct F64 {
  int tile_rows;  ///< rows that tile() takes at most

  /// c [rows, columns] -= a^T panel; a packed [k][rows], columns <= kPanelF64.
  void (*subtract_tile)(const double* a, int64_t rows, const double* panel, int64_t k, double* c, int64_t ldc, int64_t columns);
  /// Replaces the upper triangle of a [n, n] by U; what lies under it is overwritten. n is a multiple of kSolveMultiple.
  /// Returns the row of the first pivot that is not a positive finite number, or -1.
  int64_t (*factor)(double* a, int64_t lda, int64_t n);
  /// panel [n] <- U^-T panel, and <- U^-1 panel.
  void (*solve_upper_transposed)(const double* u, int64_t ldu, int64_t n, double* panel);
  void (*solve_upper)(const double* u, int64_t ldu, int64_t n, double* panel);
};

}  // namespace cmoe::kernels

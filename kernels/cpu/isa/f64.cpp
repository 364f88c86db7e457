// Cholesky pieces in f64: the panel update, the factor of a diagonal block, the solves of a panel with it.
//   U^T U = A:      u_jj = sqrt(a_jj), u_ji = a_ji / u_jj, then a_ki -= u_jk u_ji for k > j
//   U^T x = b:      x_j = (b_j - sum over l < j of u_lj x_l) / u_jj
//   U x = b:        x_j = (b_j - sum over l > j of u_jl x_l) / u_jj
#include "kernels/cpu/isa/kernels.h"
#include "kernels/cpu/isa/simd.h"

namespace cmoe::kernels::CMOE_ISA {
namespace {

constexpr int kWide = kLanes / 2;  // doubles of a vector
typedef double Wide __attribute__((vector_size(kWide * 8)));
typedef double LooseWide __attribute__((vector_size(kWide * 8), aligned(8), may_alias));

CMOE_INLINE Wide load(const double* p) { return *reinterpret_cast<const LooseWide*>(p); }
CMOE_INLINE void store(double* p, Wide v) { *reinterpret_cast<LooseWide*>(p) = v; }

// c - a b, one rounding where the machine has it.
#if defined(__AVX512F__)
CMOE_INLINE Wide broadcast(double x) { return _mm512_set1_pd(x); }
CMOE_INLINE Wide subtract_product(Wide a, Wide b, Wide c) { return _mm512_fnmadd_pd(a, b, c); }
#elif defined(__AVX2__)
CMOE_INLINE Wide broadcast(double x) { return _mm256_set1_pd(x); }
CMOE_INLINE Wide subtract_product(Wide a, Wide b, Wide c) { return _mm256_fnmadd_pd(a, b, c); }
#else
CMOE_INLINE Wide broadcast(double x) { return Wide{x, x}; }
CMOE_INLINE Wide subtract_product(Wide a, Wide b, Wide c) { return c - a * b; }
#endif

constexpr int kRows = kLanes == 16 ? 14 : 6;  // of a tile
constexpr int kSolveRows = kLanes == 16 ? 8 : 4;
constexpr int kVecs = 2, kPart = kVecs * kWide;  // columns at once

// acc[r][v] -= a(r, l) panel[l][v] for l in [begin, end), in order, or from the last where Up: the order in which a solve meets
// its rows, so that kSolveRows does not reach the bits.
template <int R, bool Up, class A>
CMOE_INLINE void subtract_products(const A& a, const double* panel, int64_t begin, int64_t end, Wide (&acc)[R][kVecs]) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t l = Up ? end - 1 - (i - begin) : i;
    Wide row[kVecs];
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) row[v] = load(panel + l * kPanelF64 + v * kWide);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Wide element = broadcast(a(r, l));
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) acc[r][v] = subtract_product(element, row[v], acc[r][v]);
    }
  }
}

template <int R>
void subtract_rows(const double* a, const double* panel, int64_t k, double* c, int64_t ldc, int64_t columns) {
  for (int part = 0; part < columns; part += kPart) {
    Wide acc[R][kVecs];
    const bool whole = columns - part >= kPart;
    double edge[R][kPart];  // where only some of the columns exist
    if (!whole) {
      for (int r = 0; r < R; ++r) {
        for (int i = 0; i < kPart; ++i) edge[r][i] = i < columns - part ? c[r * ldc + part + i] : 0.0;
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) acc[r][v] = load((whole ? c + r * ldc + part : edge[r]) + v * kWide);
    }
    subtract_products<R, false>([a](int r, int64_t l) { return a[l * R + r]; }, panel + part, 0, k, acc);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) store((whole ? c + r * ldc + part : edge[r]) + v * kWide, acc[r][v]);
    }
    if (!whole) {
      for (int r = 0; r < R; ++r) {
        for (int i = 0; i < columns - part; ++i) c[r * ldc + part + i] = edge[r][i];
      }
    }
  }
}

using Rows = void (*)(const double*, const double*, int64_t, double*, int64_t, int64_t);
constexpr Rows kSubtract[] = {nullptr,           subtract_rows<1>,  subtract_rows<2>, subtract_rows<3>,  subtract_rows<4>,
                              subtract_rows<5>,  subtract_rows<6>,
#ifdef __AVX512F__
                              subtract_rows<7>,  subtract_rows<8>,  subtract_rows<9>, subtract_rows<10>, subtract_rows<11>,
                              subtract_rows<12>, subtract_rows<13>, subtract_rows<14>
#endif
};

void subtract_tile(const double* a, int64_t rows, const double* panel, int64_t k, double* c, int64_t ldc, int64_t columns) {
  kSubtract[rows](a, panel, k, c, ldc, columns);
}

int64_t factor(double* a, int64_t lda, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    double* row = a + j * lda;
    const double pivot = row[j];
    if (!(pivot > 0 && pivot < __builtin_inf())) return j;
    const double root = __builtin_sqrt(pivot);
    row[j] = root;
    for (int64_t i = j + 1; i < n; ++i) row[i] /= root;
    for (int64_t k = j + 1; k < n; ++k) {
      const Wide element = broadcast(row[k]);
      // From the vector that holds the diagonal on: what it changes to the left of it belongs to no one.
      for (int64_t i = k / kWide * kWide; i < n; i += kWide) {
        double* at = a + k * lda + i;
        store(at, subtract_product(element, load(row + i), load(at)));
      }
    }
  }
  return -1;
}

// One block of kSolveRows rows from j on of either solve; `element(r, l)` is what row l is multiplied with for row j + r.
template <bool Up, class A>
CMOE_INLINE void solve_rows(const A& element, int64_t j, int64_t begin, int64_t end, double* panel) {
  Wide x[kSolveRows][kVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kSolveRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) x[r][v] = load(panel + (j + r) * kPanelF64 + v * kWide);
  }
  subtract_products<kSolveRows, Up>(element, panel, begin, end, x);
#pragma GCC unroll 16
  for (int i = 0; i < kSolveRows; ++i) {
    const int r = Up ? kSolveRows - 1 - i : i;
    const Wide diagonal = broadcast(element(r, j + r));
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) {
      x[r][v] /= diagonal;
      store(panel + (j + r) * kPanelF64 + v * kWide, x[r][v]);
    }
#pragma GCC unroll 16
    for (int k = i + 1; k < kSolveRows; ++k) {
      const int s = Up ? kSolveRows - 1 - k : k;
      const Wide factor_of = broadcast(element(s, j + r));
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) x[s][v] = subtract_product(factor_of, x[r][v], x[s][v]);
    }
  }
}

void solve_upper_transposed(const double* u, int64_t ldu, int64_t n, double* panel) {
  for (int part = 0; part < kPanelF64; part += kPart) {
    for (int64_t j = 0; j < n; j += kSolveRows) {
      solve_rows<false>([=](int r, int64_t l) { return u[l * ldu + j + r]; }, j, 0, j, panel + part);
    }
  }
}

void solve_upper(const double* u, int64_t ldu, int64_t n, double* panel) {
  for (int part = 0; part < kPanelF64; part += kPart) {
    for (int64_t j = n - kSolveRows; j >= 0; j -= kSolveRows) {
      solve_rows<true>([=](int r, int64_t l) { return u[(j + r) * ldu + l]; }, j, j + kSolveRows, n, panel + part);
    }
  }
}

}  // namespace

F64 f64() {
  return {.tile_rows = kRows,
          .subtract_tile = subtract_tile,
          .factor = factor,
          .solve_upper_transposed = solve_upper_transposed,
          .solve_upper = solve_upper};
}

}  // namespace cmoe::kernels::CMOE_ISA

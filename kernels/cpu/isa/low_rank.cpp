// Products with a short side (the matrices of LoRA): the long side lies in vectors, the short one in registers.
#include "kernels/cpu/isa/kernels.h"
#include "kernels/cpu/isa/simd.h"

namespace cmoe::kernels::CMOE_ISA {
namespace {

// Elements whose sums lie side by side in narrow_dots, whatever the instruction set.
constexpr int kBlock = 16, kVecs = kBlock / kLanes;
// Short-side elements and rows whose sums fit the registers together.
constexpr int kMost = kLanes == 16 ? 8 : 4, kDotRows = kLanes == 16 ? 3 : 1;
constexpr int kSumRows = kLanes == 16 ? 6 : 3, kSumVecs = 2;
constexpr int kOuterVecs = kLanes == 16 ? 3 : 2;

CMOE_INLINE Vec load_some(const float* p, int64_t valid) {
  return valid >= kLanes ? load(p) : load_part(p, valid < 0 ? 0 : valid, 0.0f);
}

template <int Rows, int N>
void dots(const float* x, int64_t ldx, const float* w, int64_t k, float* y, int64_t ldy) {
  Vec sums[Rows][N][kVecs] = {};
  const auto step = [&](int64_t i, auto load_at) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      Vec rows[Rows];
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) rows[r] = load_at(x + r * ldx, i + v * kLanes);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        const Vec weight = load_at(w + n * k, i + v * kLanes);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) sums[r][n][v] = fma(rows[r], weight, sums[r][n][v]);
      }
    }
  };
  int64_t i = 0;
  for (; i + kBlock <= k; i += kBlock) step(i, [](const float* p, int64_t at) { return load(p + at); });
  if (i < k) step(i, [k](const float* p, int64_t at) { return load_some(p + at, k - at); });
  for (int r = 0; r < Rows; ++r) {
    for (int n = 0; n < N; ++n) y[r * ldy + n] = sum_block<kBlock>(sums[r][n]);
  }
}

template <int Rows>
void dots_of_rows(const float* x, int64_t ldx, const float* w, int64_t n, int64_t k, float* y, int64_t ldy) {
  int64_t j = 0;
  if constexpr (kMost == 8) {
    for (; j + 8 <= n; j += 8) dots<Rows, 8>(x, ldx, w + j * k, k, y + j, ldy);
  }
  for (; j + 4 <= n; j += 4) dots<Rows, 4>(x, ldx, w + j * k, k, y + j, ldy);
  for (; j < n; ++j) dots<Rows, 1>(x, ldx, w + j * k, k, y + j, ldy);
}

template <int Rows, int V>
CMOE_INLINE void sums_of_columns(const float* x, int64_t ldx, const float* w, int64_t n, int64_t ldw, float* y, int64_t ldy,
                                 int64_t valid, bool add) {
  Vec sums[Rows][V] = {};
  for (int64_t j = 0; j < n; ++j) {
    Vec weight[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) weight[v] = load_some(w + j * ldw + v * kLanes, valid - v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Vec factor = broadcast(x[r * ldx + j]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[r][v] = fma(factor, weight[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      float* to = y + r * ldy + v * kLanes;
      const int64_t width = smaller(valid - v * kLanes, kLanes);
      if (width == kLanes) {
        store(to, add ? load(to) + sums[r][v] : sums[r][v]);
      } else if (width > 0) {
        store_part(to, add ? load_part(to, width, 0.0f) + sums[r][v] : sums[r][v], width);
      }
    }
  }
}

template <int Rows>
void sums_of_rows(const float* x, int64_t ldx, const float* w, int64_t ldw, int64_t n, int64_t k, float* y, int64_t ldy,
                  bool add) {
  constexpr int64_t kWidth = kSumVecs * kLanes;
  int64_t c = 0;
  for (; c + kWidth <= k; c += kWidth) sums_of_columns<Rows, kSumVecs>(x, ldx, w + c, n, ldw, y + c, ldy, kWidth, add);
  for (; c < k; c += kLanes) sums_of_columns<Rows, 1>(x, ldx, w + c, n, ldw, y + c, ldy, k - c, add);
}

template <int N, int V>
CMOE_INLINE void outer_sums(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t t, float* c, int64_t ldc,
                            int64_t valid, bool add) {
  Vec sums[N][V] = {};
  for (int n = 0; add && n < N; ++n) {
    for (int v = 0; v < V; ++v) sums[n][v] = load_some(c + n * ldc + v * kLanes, valid - v * kLanes);
  }
  for (int64_t i = 0; i < t; ++i) {
    Vec row[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) row[v] = load_some(b + i * ldb + v * kLanes, valid - v * kLanes);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const Vec factor = broadcast(a[i * lda + n]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[n][v] = fma(factor, row[v], sums[n][v]);
    }
  }
  for (int n = 0; n < N; ++n) {
    for (int v = 0; v < V; ++v) {
      const int64_t width = smaller(valid - v * kLanes, kLanes);
      if (width > 0) store_part(c + n * ldc + v * kLanes, sums[n][v], width);
    }
  }
}

template <int N>
void outer_columns(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t t, float* c, int64_t ldc, int64_t columns,
                   bool add) {
  constexpr int64_t kWidth = kOuterVecs * kLanes;
  int64_t at = 0;
  for (; at + kWidth <= columns; at += kWidth) outer_sums<N, kOuterVecs>(a, lda, b + at, ldb, t, c + at, ldc, kWidth, add);
  for (; at < columns; at += kLanes) outer_sums<N, 1>(a, lda, b + at, ldb, t, c + at, ldc, columns - at, add);
}

}  // namespace

void narrow_dots(const float* x, int64_t ldx, int64_t rows, const float* w, int64_t n, int64_t k, float* y, int64_t ldy) {
  int64_t r = 0;
  for (; r + kDotRows <= rows; r += kDotRows) dots_of_rows<kDotRows>(x + r * ldx, ldx, w, n, k, y + r * ldy, ldy);
  for (; r < rows; ++r) dots_of_rows<1>(x + r * ldx, ldx, w, n, k, y + r * ldy, ldy);
}

void narrow_sums(const float* x, int64_t ldx, int64_t rows, const float* w, int64_t ldw, int64_t n, int64_t k, float* y,
                 int64_t ldy, bool add) {
  int64_t r = 0;
  for (; r + kSumRows <= rows; r += kSumRows) sums_of_rows<kSumRows>(x + r * ldx, ldx, w, ldw, n, k, y + r * ldy, ldy, add);
  for (; r < rows; ++r) sums_of_rows<1>(x + r * ldx, ldx, w, ldw, n, k, y + r * ldy, ldy, add);
}

void narrow_outer(const float* a, int64_t lda, int64_t n, const float* b, int64_t ldb, int64_t columns, int64_t t, float* c,
                  int64_t ldc, bool add) {
  int64_t j = 0;
  if constexpr (kMost == 8) {
    for (; j + 8 <= n; j += 8) outer_columns<8>(a + j, lda, b, ldb, t, c + j * ldc, ldc, columns, add);
  }
  for (; j + 4 <= n; j += 4) outer_columns<4>(a + j, lda, b, ldb, t, c + j * ldc, ldc, columns, add);
  for (; j < n; ++j) outer_columns<1>(a + j, lda, b, ldb, t, c + j * ldc, ldc, columns, add);
}

}  // namespace cmoe::kernels::CMOE_ISA

#pragma once

#include "kernels/cpu/isa/simd.h"

// The one inner loop of all products: acc[r][v] += a(r, k) * b(k, v), k in order, one fused multiply-add each.
namespace cmoe::kernels::CMOE_ISA {

// Vectors of a panel handled at once, so that kTileRows * kTileVecs accumulators, one row of b and a broadcast fit the
// registers.
inline constexpr int kTileVecs = 2;
inline constexpr int kTileColumns = kTileVecs * kLanes;
inline constexpr int kTileRows = kLanes == 16 ? 14 : 6;

/// Elements of x packed [k][R].
template <int R>
struct PackedRows {
  const float* p;
  CMOE_INLINE float operator()(int r, int64_t k) const { return p[k * R + r]; }
};
/// Elements of a row-major matrix.
template <int Ld>
struct FixedRows {
  const float* p;
  CMOE_INLINE float operator()(int r, int64_t k) const { return p[r * Ld + k]; }
};

/// V vectors of f32 row k, from columns that begin at p.
template <int V>
struct FloatColumns {
  static constexpr int kStep = 1;
  const float* p;
  int64_t ld;
  CMOE_INLINE Vec get(int64_t k, int, int v) const { return load(p + k * ld + v * kLanes); }
};

template <int R, int V, class A, class B>
CMOE_INLINE void multiply_step(const A& a, const B& b, int64_t k, int step, Vec (&acc)[R][V]) {
  Vec columns[V];
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) columns[v] = b.get(k, step, v);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const Vec element = broadcast(a(r, k + step));
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) acc[r][v] = fma(element, columns[v], acc[r][v]);
  }
}

template <int R, int V, class A, class B>
CMOE_INLINE void multiply(const A& a, const B& b, int64_t k, Vec (&acc)[R][V]) {
  int64_t i = 0;
  for (; i + B::kStep <= k; i += B::kStep) {
#pragma GCC unroll 2
    for (int step = 0; step < B::kStep; ++step) multiply_step(a, b, i, step, acc);
  }
  for (; i < k; ++i) multiply_step(a, b, i, 0, acc);
}

/// y (+)= acc, of which `columns` columns exist.
template <int R, int V>
CMOE_INLINE void write_tile(const Vec (&acc)[R][V], float* y, int64_t ldy, int64_t columns, bool add) {
  if (columns >= V * kLanes) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) {
        float* p = y + r * ldy + v * kLanes;
        store(p, add ? load(p) + acc[r][v] : acc[r][v]);
      }
    }
    return;
  }
  float lanes[R][V * kLanes];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) store(&lanes[r][v * kLanes], acc[r][v]);
  }
  for (int r = 0; r < R; ++r) {
    for (int64_t c = 0; c < columns; ++c) y[r * ldy + c] = add ? y[r * ldy + c] + lanes[r][c] : lanes[r][c];
  }
}

/// Panels that R rows take at once: with few rows several panels hide the latency of the sums.
template <int R>
inline constexpr int kPanelsAtOnce = kLanes == 16            ? (R <= 2   ? 4
                                                                : R <= 4 ? 2
                                                                         : 1)
                                     : kLanes == 8 && R == 1 ? 2
                                                             : 1;

// P panels from the first column on, all their vectors at once.
template <int R, int P, template <int> class Columns>
CMOE_INLINE void whole_panels(const float* packed, const void* panels, int64_t k, float* y, int64_t ldy, int64_t columns,
                              bool add) {
  constexpr int V = P * kPanel / kLanes;
  Vec acc[R][V] = {};
  multiply<R, V>(PackedRows<R>{packed}, Columns<V>::at(panels, k, 0), k, acc);
  write_tile(acc, y, ldy, columns, add);
}

/// y [R, columns] (+)= rows of x, packed [k][R], times the features of consecutive panels. `Columns<V>` reads V vectors of
/// one step in k.
template <int R, template <int> class Columns>
void tile_rows(const float* packed, const void* panels, int64_t k, float* y, int64_t ldy, int64_t columns, bool add) {
  constexpr int P = kPanelsAtOnce<R>;
  const auto* panel = static_cast<const char*>(panels);
  int64_t c = 0;
  if constexpr (P > 1) {
    for (; columns - c > (P - 1) * kPanel; c += P * kPanel, panel += P * Columns<1>::panel_bytes(k)) {
      whole_panels<R, P, Columns>(packed, panel, k, y + c, ldy, columns - c, add);
    }
  }
  for (; c < columns; c += kPanel, panel += Columns<1>::panel_bytes(k)) {
    for (int part = 0; part < kPanel && c + part < columns; part += kTileColumns) {
      Vec acc[R][kTileVecs] = {};
      multiply<R, kTileVecs>(PackedRows<R>{packed}, Columns<kTileVecs>::at(panel, k, part), k, acc);
      write_tile(acc, y + c + part, ldy, columns - c - part, add);
    }
  }
}

}  // namespace cmoe::kernels::CMOE_ISA

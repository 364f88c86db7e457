#pragma once

// Products of bf16 pairs by vdpbf16ps: acc[j] += x[2k] W[j, 2k] + x[2k + 1] W[j, 2k + 1], sums in f32. The instruction flushes
// subnormals to zero. A pair is 32 bits, the even element in the low half.
#include "kernels/cpu/isa/simd.h"

namespace cmoe::kernels::avx512_bf16 {

inline constexpr int kTileRows = 14, kVecs = kPanel / kLanes;

CMOE_INLINE Vec dot(uint32_t pair, IntVec weights, Vec acc) {
  return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(broadcast_bits(static_cast<int32_t>(pair))),
                          reinterpret_cast<__m512bh>(weights));
}

template <int R, int V, class Pairs>
CMOE_INLINE void accumulate(const Pairs& pairs, const uint16_t* weights, int64_t panel, int64_t steps, Vec (&acc)[R][V]) {
  for (int64_t k = 0; k < steps; ++k) {
    IntVec columns[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) columns[v] = load_bits(weights + v / kVecs * panel + (k * kPanel + v % kVecs * kLanes) * 2);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) acc[r][v] = dot(pairs(r, k), columns[v], acc[r][v]);
    }
  }
}

template <int R, int V>
CMOE_INLINE void write_tile(const Vec (&acc)[R][V], float* y, int64_t ldy, int64_t columns, bool add) {
  float lanes[kLanes];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      float* p = y + r * ldy + v * kLanes;
      const int64_t n = columns - v * kLanes;
      if (n >= kLanes) {
        store(p, add ? load(p) + acc[r][v] : acc[r][v]);
      } else if (n > 0) {
        store(lanes, acc[r][v]);
        for (int64_t i = 0; i < n; ++i) p[i] = add ? p[i] + lanes[i] : lanes[i];
      }
    }
  }
}

// 16 pairs of one row: k .. k + 31, zero beyond n.
CMOE_INLINE IntVec round_pairs(const float* x, int64_t n) {
  const auto mask = [n](int64_t from) {
    return static_cast<__mmask16>(n - from >= 16 ? 0xffff : n <= from ? 0 : (1 << (n - from)) - 1);
  };
  const Vec low = _mm512_maskz_loadu_ps(mask(0), x), high = _mm512_maskz_loadu_ps(mask(16), x + 16);
  return reinterpret_cast<IntVec>(_mm512_cvtne2ps_pbh(high, low));
}

/// dst[s * ldd + r] = pair s of row r, for r < rows <= kLanes and pairs of columns 2s, 2s + 1 < k, an odd k padded with zero.
/// Whole vectors are written: ldd >= rows, and what spills over is overwritten by the next; dst ends with room for the last.
inline void pack_pairs(const float* x, int64_t ldx, int64_t rows, int64_t k, void* dst, int64_t ldd) {
  auto* out = static_cast<float*>(dst);
  const int64_t steps = (k + 1) / 2;
  for (int64_t s = 0; s < steps; s += kLanes) {
    Vec v[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      v[i] = i < rows ? reinterpret_cast<Vec>(round_pairs(x + i * ldx + 2 * s, k - 2 * s)) : Vec{};
    }
    transpose(v);
    const int64_t depth = smaller(steps - s, kLanes);
    for (int64_t i = 0; i < depth; ++i) store(out + (s + i) * ldd, v[i]);
  }
}

}  // namespace cmoe::kernels::avx512_bf16

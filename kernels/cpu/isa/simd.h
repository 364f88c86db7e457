#pragma once

// Vectors of kLanes floats. Everything sits in the namespace of the instruction set it is compiled for: an inline function
// shared by two sets would be linked once, with instructions that the other set lacks. For the same reason the kernels use
// no templates of the standard library.
#include <cstdint>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kernels/cpu/table.h"

#define CMOE_INLINE inline __attribute__((always_inline))

namespace cmoe::kernels::CMOE_ISA {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#elif defined(__AVX2__)
inline constexpr int kLanes = 8;
#else
inline constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef float LooseVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int32_t LooseIntVec __attribute__((vector_size(kLanes * 4), aligned(2), may_alias));

CMOE_INLINE Vec load(const float* p) { return *reinterpret_cast<const LooseVec*>(p); }
CMOE_INLINE void store(float* p, Vec v) { *reinterpret_cast<LooseVec*>(p) = v; }
CMOE_INLINE IntVec load_bits(const void* p) { return *static_cast<const LooseIntVec*>(p); }

// fma() is one rounding where the machine has it (AVX2 and up, so those two agree to the bit), else two.
// max(a, b) = a > b ? a : b and min alike: a NaN in b is kept, in a dropped.
// scale(p, n) = p 2^n, rounded once, for whole n in [-150, 128] and 1/2 < p < 2.
#if defined(__AVX512F__)
CMOE_INLINE Vec broadcast(float x) { return _mm512_set1_ps(x); }
CMOE_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
CMOE_INLINE Vec max(Vec a, Vec b) { return _mm512_maskz_max_ps(0xffff, a, b); }
CMOE_INLINE Vec min(Vec a, Vec b) { return _mm512_maskz_min_ps(0xffff, a, b); }
CMOE_INLINE Vec scale(Vec p, Vec n) { return _mm512_maskz_scalef_ps(0xffff, p, n); }
#else
#if defined(__AVX2__)
CMOE_INLINE Vec broadcast(float x) { return _mm256_set1_ps(x); }
CMOE_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
CMOE_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
CMOE_INLINE Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
#else
CMOE_INLINE Vec broadcast(float x) { return Vec{x, x, x, x}; }
CMOE_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
CMOE_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }
CMOE_INLINE Vec min(Vec a, Vec b) { return a < b ? a : b; }
#endif
CMOE_INLINE Vec scale(Vec p, Vec n) {
  const IntVec exponent = __builtin_convertvector(n, IntVec), half = exponent >> 1;
  return p * reinterpret_cast<Vec>((half + 127) << 23) * reinterpret_cast<Vec>((exponent - half + 127) << 23);
}
#endif

/// Whether a > b in any lane; NaN never is.
CMOE_INLINE bool any_greater(Vec a, Vec b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0;
#else
  const IntVec greater = a > b;
  return (greater[0] | greater[1] | greater[2] | greater[3]) != 0;
#endif
}

CMOE_INLINE IntVec broadcast_bits(int32_t x) { return IntVec{} + x; }
CMOE_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/// Vec of p[0 .. n), the rest `fill`.
CMOE_INLINE Vec load_part(const float* p, int64_t n, float fill) {
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = i < n ? p[i] : fill;
  return load(lanes);
}
CMOE_INLINE void store_part(float* p, Vec v, int64_t n) {
  float lanes[kLanes];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

template <int... Lane>
struct Lanes {};
template <int N, int... Lane>
struct MakeLanes : MakeLanes<N - 1, N - 1, Lane...> {};
template <int... Lane>
struct MakeLanes<0, Lane...> {
  using type = Lanes<Lane...>;
};

/// e^x within 1.5 ulp: 2^n times a polynomial on [-ln2/2, ln2/2]; overflows to infinity, underflows through subnormals to 0,
/// exp(0) = 1, NaN stays NaN.
CMOE_INLINE Vec exp(Vec x) {
  x = max(broadcast(-104.0f), min(broadcast(89.0f), x));
  const Vec magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec n = fma(x, broadcast(1.44269504f), magic) - magic;
  Vec r = fma(n, broadcast(-0.693359375f), x);  // ln 2 in two parts; the first product is exact
  r = fma(n, broadcast(2.12194440e-4f), r);
  Vec p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  return scale(fma(p * r, r, r) + broadcast(1.0f), n);
}

// Lanes i and i + Width folded for i < Width, until one is left: a tree whose shape does not depend on kLanes once wider blocks
// are folded by halves too.
template <int Width, int... L>
CMOE_INLINE Vec upper_lanes(Vec v, Lanes<L...>) {
  return __builtin_shufflevector(v, v, ((L + Width) % kLanes)...);
}
template <int Width = kLanes / 2>
CMOE_INLINE float sum_lanes(Vec v) {
  if constexpr (Width == 0) {
    return v[0];
  } else {
    return sum_lanes<Width / 2>(v + upper_lanes<Width>(v, typename MakeLanes<kLanes>::type{}));
  }
}
template <int Width = kLanes / 2>
CMOE_INLINE float max_lanes(Vec v) {
  if constexpr (Width == 0) {
    return v[0];
  } else {
    return max_lanes<Width / 2>(max(v, upper_lanes<Width>(v, typename MakeLanes<kLanes>::type{})));
  }
}

/// Sum of a block of Width floats in an order that Width alone decides.
template <int Width>
CMOE_INLINE float sum_block(Vec (&v)[Width / kLanes]) {
#pragma GCC unroll 8
  for (int count = Width / kLanes / 2; count > 0; count /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) v[i] += v[i + count];
  }
  return sum_lanes(v[0]);
}

// Swaps the off-diagonal D x D blocks of each 2D x 2D block: one stage of a transpose.
template <int D, int... L>
CMOE_INLINE void swap_blocks(Vec& a, Vec& b, Lanes<L...>) {
  const Vec upper = __builtin_shufflevector(a, b, ((L & D) ? kLanes + L - D : L)...);
  b = __builtin_shufflevector(a, b, ((L & D) ? kLanes + L : L + D)...);
  a = upper;
}
template <int D>
CMOE_INLINE void transpose_stage(Vec (&v)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (!(i & D)) swap_blocks<D>(v[i], v[i + D], typename MakeLanes<kLanes>::type{});
  }
}
CMOE_INLINE void transpose(Vec (&v)[kLanes]) {
  transpose_stage<1>(v);
  transpose_stage<2>(v);
  if constexpr (kLanes > 4) transpose_stage<4>(v);
  if constexpr (kLanes > 8) transpose_stage<8>(v);
}

/// dst[c * ldd + r] = src[r * lds + c] for r < rows, c < columns; rows up to padded_rows become zero. With `loose`, which
/// needs ldd = padded_rows <= kLanes, dst has room for kLanes more floats, and whole vectors are stored.
inline void transpose_matrix(const float* src, int64_t lds, int64_t rows, int64_t columns, float* dst, int64_t ldd,
                             int64_t padded_rows, bool loose = false) {
  for (int64_t r = 0; r < padded_rows; r += kLanes) {
    const int64_t height = smaller(rows - r, kLanes), width = loose ? kLanes : smaller(padded_rows - r, kLanes);
    for (int64_t c = 0; c < columns; c += kLanes) {
      const int64_t depth = smaller(columns - c, kLanes);
      Vec v[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const float* p = src + (r + i) * lds + c;
        v[i] = i >= height ? Vec{} : depth == kLanes ? load(p) : load_part(p, depth, 0.0f);
      }
      transpose(v);
      float* q = dst + c * ldd + r;
      if (width == kLanes && depth == kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) store(q + i * ldd, v[i]);
      } else {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          if (i < depth) store_part(q + i * ldd, v[i], width);
        }
      }
    }
  }
}

}  // namespace cmoe::kernels::CMOE_ISA

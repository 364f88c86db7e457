// Magnitudes as integers: the bits of |x| are ordered as |x| is, infinity below every NaN.
#include "kernels/cpu/isa/kernels.h"
#include "kernels/cpu/isa/simd.h"

namespace cmoe::kernels::CMOE_ISA {
namespace {

CMOE_INLINE IntVec magnitudes(const float* x) { return load_bits(x) & broadcast_bits(0x7fffffff); }

CMOE_INLINE int32_t magnitude(const float* x) {
  int32_t bits;
  __builtin_memcpy(&bits, x, sizeof(bits));
  return bits & 0x7fffffff;
}

// Bit i: whether a[i] >= b[i].
CMOE_INLINE uint32_t lanes_at_least(IntVec a, IntVec b) {
#if defined(__AVX512F__)
  return _mm512_cmpge_epi32_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(a >= b)));
#else
  const IntVec yes = (a >= b) & IntVec{1, 2, 4, 8};
  return static_cast<uint32_t>((yes[0] | yes[1]) | (yes[2] | yes[3]));
#endif
}

}  // namespace

void slice_maxima(const float* x, int64_t n, int64_t slices, int32_t* maxima) {
  constexpr int64_t kBlock = 64;
  constexpr int kVecs = kBlock / kLanes;
  int64_t slice = 0;
  for (; slice + kBlock <= slices; slice += kBlock) {
    IntVec top[kVecs] = {};
    int64_t i = slice;
    for (; i + kBlock <= n; i += slices) {
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) {
        const IntVec bits = magnitudes(x + i + v * kLanes);
        top[v] = bits > top[v] ? bits : top[v];
      }
    }
    for (int v = 0; v < kVecs; ++v) *reinterpret_cast<LooseIntVec*>(maxima + slice + v * kLanes) = top[v];
    for (int64_t j = i; j < smaller(n, i + kBlock); ++j) {
      const int32_t bits = magnitude(x + j);
      if (bits > maxima[slice + j - i]) maxima[slice + j - i] = bits;
    }
  }
  for (; slice < slices; ++slice) {
    maxima[slice] = 0;
    for (int64_t i = slice; i < n; i += slices) {
      const int32_t bits = magnitude(x + i);
      if (bits > maxima[slice]) maxima[slice] = bits;
    }
  }
}

int64_t list_magnitudes(const float* x, int64_t n, int32_t least, int32_t* index) {
  int64_t count = 0, i = 0;
  const IntVec bound = broadcast_bits(least);
  for (; i + kLanes <= n; i += kLanes) {
    for (uint32_t lanes = lanes_at_least(magnitudes(x + i), bound); lanes != 0; lanes &= lanes - 1)
      index[count++] = static_cast<int32_t>(i + __builtin_ctz(lanes));
  }
  for (; i < n; ++i) {
    if (magnitude(x + i) >= least) index[count++] = static_cast<int32_t>(i);
  }
  return count;
}

}  // namespace cmoe::kernels::CMOE_ISA

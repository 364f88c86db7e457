// bf16 products by vdpbf16ps: acc[j] += x[2k] W[j, 2k] + x[2k + 1] W[j, 2k + 1]. x is rounded to bf16 and packed
// [ceil(k / 2)][rows] in pairs; sums are f32, in the order of k. The instruction flushes subnormals to zero.
#include "kernels/cpu/isa/simd.h"

namespace cmoe::kernels {
namespace avx512_bf16 {
namespace {

constexpr int kTileRows = 14, kVecs = kPanel / kLanes;

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

template <int R>
void tile_rows(const uint32_t* packed, const uint16_t* panels, int64_t steps, float* y, int64_t ldy, int64_t columns,
               bool add) {
  constexpr int P = R <= 2 ? 4 : R <= 4 ? 2 : 1;  // with few rows several panels hide the latency of the sums
  const int64_t panel = steps * kPanel * 2;
  const auto pairs = [packed](int r, int64_t k) { return packed[k * R + r]; };
  int64_t c = 0;
  if constexpr (P > 1) {
    for (; columns - c > (P - 1) * kPanel; c += P * kPanel, panels += P * panel) {
      Vec acc[R][P * kVecs] = {};
      accumulate<R, P * kVecs>(pairs, panels, panel, steps, acc);
      write_tile(acc, y + c, ldy, columns - c, add);
    }
  }
  for (; c < columns; c += kPanel, panels += panel) {
    Vec acc[R][kVecs] = {};
    accumulate<R, kVecs>(pairs, panels, panel, steps, acc);
    write_tile(acc, y + c, ldy, columns - c, add);
  }
}

using Tile = void (*)(const uint32_t*, const uint16_t*, int64_t, float*, int64_t, int64_t, bool);
constexpr Tile kTiles[] = {nullptr,       tile_rows<1>,  tile_rows<2>,  tile_rows<3>,  tile_rows<4>,
                           tile_rows<5>,  tile_rows<6>,  tile_rows<7>,  tile_rows<8>,  tile_rows<9>,
                           tile_rows<10>, tile_rows<11>, tile_rows<12>, tile_rows<13>, tile_rows<14>};

int64_t packed_bytes(int64_t rows, int64_t k) { return (rows * ((k + 1) / 2) + kLanes) * 4; }

// 16 pairs of one row: k .. k + 31, zero beyond n.
CMOE_INLINE IntVec round_pairs(const float* x, int64_t n) {
  const auto mask = [n](int64_t from) {
    return static_cast<__mmask16>(n - from >= 16 ? 0xffff : n <= from ? 0 : (1 << (n - from)) - 1);
  };
  const Vec low = _mm512_maskz_loadu_ps(mask(0), x), high = _mm512_maskz_loadu_ps(mask(16), x + 16);
  return reinterpret_cast<IntVec>(_mm512_cvtne2ps_pbh(high, low));
}

void pack(const float* x, int64_t ldx, int64_t rows, int64_t k, void* packed) {
  auto* dst = static_cast<float*>(packed);
  const int64_t steps = (k + 1) / 2;
  for (int64_t s = 0; s < steps; s += kLanes) {
    Vec v[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      v[i] = i < rows ? reinterpret_cast<Vec>(round_pairs(x + i * ldx + 2 * s, k - 2 * s)) : Vec{};
    }
    transpose(v);
    const int64_t depth = smaller(steps - s, kLanes);
    // Whole vectors: what spills over is overwritten by the next, and the buffer ends with room for the last.
    for (int64_t i = 0; i < depth; ++i) store(dst + (s + i) * rows, v[i]);
  }
}

void tile(const void* packed, int64_t rows, const void* panels, int64_t k, float* y, int64_t ldy, int64_t columns, bool add) {
  kTiles[rows](static_cast<const uint32_t*>(packed), static_cast<const uint16_t*>(panels), (k + 1) / 2, y, ldy, columns, add);
}

}  // namespace
}  // namespace avx512_bf16

const Gemm& gemm_avx512_bf16() {
  using namespace avx512_bf16;
  static const Gemm gemm{.tile_rows = kTileRows, .packed_bytes = packed_bytes, .pack = pack, .tile = tile};
  return gemm;
}

}  // namespace cmoe::kernels

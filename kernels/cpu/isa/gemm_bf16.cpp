// bf16 weights, widened to f32 on the way to the multiplier; x and sums stay f32. For CPUs without bf16 products.
// A pair of neighbours in k is one 32-bit lane: its low half is the even k, its high half the odd one.
#include "kernels/cpu/isa/gemm_tile.h"
#include "kernels/cpu/isa/kernels.h"

namespace cmoe::kernels::CMOE_ISA {
namespace {

template <int V>
struct WidenedColumns {
  static constexpr int kStep = 2;
  const uint16_t* p;
  int64_t panel;  // elements from a panel to the next
  static WidenedColumns at(const void* panels, int64_t k, int column) {
    return {static_cast<const uint16_t*>(panels) + 2 * column, (k + 1) / 2 * 2 * kPanel};
  }
  static int64_t panel_bytes(int64_t k) { return (k + 1) / 2 * 2 * kPanel * 2; }
  CMOE_INLINE Vec get(int64_t k, int step, int v) const {
    const IntVec pair = load_bits(p + v * kLanes / kPanel * panel + k * kPanel + v * kLanes % kPanel * 2);
    return reinterpret_cast<Vec>(step == 0 ? pair << 16 : pair & broadcast_bits(static_cast<int32_t>(0xffff0000u)));
  }
};

typedef uint16_t Shorts __attribute__((vector_size(kLanes * 4)));

// Of each four 16-bit numbers, the second and third exchanged.
CMOE_INLINE Vec exchange_middles(IntVec v) {
  Shorts order;
  for (int i = 0; i < 2 * kLanes; ++i) order[i] = static_cast<uint16_t>(i % 4 == 1 ? i + 1 : i % 4 == 2 ? i - 1 : i);
  return reinterpret_cast<Vec>(__builtin_shuffle(reinterpret_cast<Shorts>(v), order));
}

// A square of 64-bit lanes: stages of transpose(), which swaps 32-bit ones.
template <int D>
CMOE_INLINE void word_stage(Vec (&v)[kLanes / 2]) {
#pragma GCC unroll 8
  for (int i = 0; i < kLanes / 2; ++i) {
    if (!(i & (D / 2))) swap_blocks<D>(v[i], v[i + D / 2], typename MakeLanes<kLanes>::type{});
  }
}
CMOE_INLINE void transpose_words(Vec (&v)[kLanes / 2]) {
  word_stage<2>(v);
  if constexpr (kLanes > 4) word_stage<4>(v);
  if constexpr (kLanes > 8) word_stage<8>(v);
}

using Tile = void (*)(const float*, const void*, int64_t, float*, int64_t, int64_t, bool);

constexpr Tile kTiles[] = {
    nullptr,
    tile_rows<1, WidenedColumns>,
    tile_rows<2, WidenedColumns>,
    tile_rows<3, WidenedColumns>,
    tile_rows<4, WidenedColumns>,
    tile_rows<5, WidenedColumns>,
    tile_rows<6, WidenedColumns>,
#ifdef __AVX512F__
    tile_rows<7, WidenedColumns>,
    tile_rows<8, WidenedColumns>,
    tile_rows<9, WidenedColumns>,
    tile_rows<10, WidenedColumns>,
    tile_rows<11, WidenedColumns>,
    tile_rows<12, WidenedColumns>,
#endif
};

void tile(const void* packed, int64_t rows, const void* panel, int64_t k, float* y, int64_t ldy, int64_t columns, bool add) {
  kTiles[rows](static_cast<const float*>(packed), panel, k, y, ldy, columns, add);
}

}  // namespace

Gemm gemm_bf16() {
  Gemm gemm = gemm_f32();
  gemm.tile_rows = kLanes == 16 ? 12 : kTileRows;  // two registers for the widened pair
  gemm.tile = tile;
  return gemm;
}

void pack_panel_bf16(const uint16_t* w, int64_t n, int64_t k, uint16_t* panel) {
  for (int64_t i = 0; i < (k + 1) / 2 * 2; ++i) {
    for (int64_t j = 0; j < kPanel; ++j) panel[i / 2 * 2 * kPanel + j * 2 + i % 2] = j < n && i < k ? w[j * k + i] : 0;
  }
}

// A lane of 64 bits holds features n, n + 1 of inputs i, i + 1. Its two middle numbers exchanged, it is what the transpose
// holds at [n / 2][i], so that only such lanes remain to be transposed.
void transpose_panel_bf16(const uint16_t* panel, int64_t k, uint16_t* transposed) {
  constexpr int kWords = kLanes / 2;  // 64-bit lanes of a vector
  for (int64_t i = 0; i < kPanel / 2; i += kWords) {
    for (int64_t n = 0; n < kPanel; n += kLanes) {
      Vec v[kWords];
#pragma GCC unroll 8
      for (int row = 0; row < kWords; ++row) {
        const bool exists = 2 * (i + row) < k;
        v[row] = exists ? exchange_middles(load_bits(panel + ((i + row) * kPanel + n) * 2)) : Vec{};
      }
      transpose_words(v);
#pragma GCC unroll 8
      for (int row = 0; row < kWords; ++row)
        store(reinterpret_cast<float*>(transposed + (n / 2 + row) * kPanel * 2 + i * 4), v[row]);
    }
  }
}

}  // namespace cmoe::kernels::CMOE_ISA

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

}  // namespace cmoe::kernels::CMOE_ISA

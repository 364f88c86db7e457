// f32 products: panels [k][kPanel], x packed [k][rows].
#include "kernels/cpu/isa/gemm_tile.h"
#include "kernels/cpu/isa/kernels.h"

namespace cmoe::kernels::CMOE_ISA {
namespace {

template <int V>
struct WeightColumns {
  static constexpr int kStep = 1;
  const float* p;
  int64_t panel;  // floats from a panel to the next
  static WeightColumns at(const void* panels, int64_t k, int column) {
    return {static_cast<const float*>(panels) + column, k * kPanel};
  }
  static int64_t panel_bytes(int64_t k) { return k * kPanel * 4; }
  CMOE_INLINE Vec get(int64_t k, int, int v) const {
    return load(p + v * kLanes / kPanel * panel + k * kPanel + v * kLanes % kPanel);
  }
};

using Tile = void (*)(const float*, const void*, int64_t, float*, int64_t, int64_t, bool);

constexpr Tile kTiles[] = {
    nullptr,
    tile_rows<1, WeightColumns>,
    tile_rows<2, WeightColumns>,
    tile_rows<3, WeightColumns>,
    tile_rows<4, WeightColumns>,
    tile_rows<5, WeightColumns>,
    tile_rows<6, WeightColumns>,
#ifdef __AVX512F__
    tile_rows<7, WeightColumns>,
    tile_rows<8, WeightColumns>,
    tile_rows<9, WeightColumns>,
    tile_rows<10, WeightColumns>,
    tile_rows<11, WeightColumns>,
    tile_rows<12, WeightColumns>,
    tile_rows<13, WeightColumns>,
    tile_rows<14, WeightColumns>,
#endif
};

int64_t packed_bytes(int64_t rows, int64_t k) { return (rows * k + kLanes) * 4; }

void pack(const float* x, int64_t ldx, int64_t rows, int64_t k, void* packed) {
  if (rows == 1) {
    __builtin_memcpy(packed, x, static_cast<uint64_t>(k) * 4);
    return;
  }
  transpose_matrix(x, ldx, rows, k, static_cast<float*>(packed), rows, rows, rows <= kLanes);
}

void tile(const void* packed, int64_t rows, const void* panel, int64_t k, float* y, int64_t ldy, int64_t columns, bool add) {
  kTiles[rows](static_cast<const float*>(packed), panel, k, y, ldy, columns, add);
}

}  // namespace

Gemm gemm_f32() { return {.tile_rows = kTileRows, .packed_bytes = packed_bytes, .pack = pack, .tile = tile}; }

void pack_panel_f32(const float* w, int64_t n, int64_t k, float* panel) { transpose_matrix(w, k, n, k, panel, kPanel, kPanel); }

void pack_columns(const float* a, int64_t lda, int64_t n, int64_t t, void* packed) {
  float* p = static_cast<float*>(packed);
  for (int64_t i = 0; i < t; ++i) {
    for (int64_t j = 0; j < n; ++j) p[i * n + j] = a[i * lda + j];
  }
}

void pack_columns_panel(const float* b, int64_t ldb, int64_t n, int64_t t, float* panel) {
  for (int64_t i = 0; i < t; ++i) {
    for (int64_t j = 0; j < kPanel; ++j) panel[i * kPanel + j] = j < n ? b[i * ldb + j] : 0.0f;
  }
}

}  // namespace cmoe::kernels::CMOE_ISA

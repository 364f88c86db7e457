// bf16 products: x is rounded to bf16 and packed [ceil(k / 2)][rows] in pairs; sums are f32, in the order of k.
#include "kernels/cpu/avx512_bf16/pairs.h"

namespace cmoe::kernels {
namespace avx512_bf16 {
namespace {

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

void pack(const float* x, int64_t ldx, int64_t rows, int64_t k, void* packed) { pack_pairs(x, ldx, rows, k, packed, rows); }

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

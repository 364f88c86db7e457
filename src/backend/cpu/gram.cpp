// Gram matrices of chosen rows, and column moments.
#include <algorithm>
#include <cstring>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/packed_weight.h"
#include "base/error.h"
#include "base/parallel.h"

namespace cmoe::cpu {

using kernels::kPanel;

// Both factors are columns of z, packed once: panels of all columns, and tiles of some rows of c at a time.
void CpuBackend::gram_rows(const Tensor& z, std::span<const int32_t> rows, int64_t first, int64_t last, Tensor& c) const {
  check_matrix("gram_rows", "z", z, -1, -1);
  CMOE_CHECK(0 <= first && first <= last && last <= z.dim(1),
             "gram_rows: rows {} to {}, expected them within the {} columns of z", first, last, z.dim(1));
  const int64_t n = last - first, width = z.dim(1) - first, t = static_cast<int64_t>(rows.size());
  check_matrix("gram_rows", "c", c, n, width);
  for (int32_t row : rows) CMOE_CHECK(row >= 0 && row < z.dim(0), "gram_rows: row {}, expected 0 to {}", row, z.dim(0) - 1);
  if (n == 0) return;
  float* out = c.data<float>();
  std::memset(out, 0, static_cast<size_t>(c.bytes()));
  if (t == 0) return;

  thread_local Scratch panel_scratch, tile_scratch;
  const float* from = z.data<float>() + first;
  const int64_t panels = (width + kPanel - 1) / kPanel, panel_size = t * kPanel;
  auto* packed_panels = reinterpret_cast<float*>(panel_scratch.resize(panels * panel_size * 4));
  parallel_for(panels, 8, [&](int64_t begin, int64_t end) {
    table_.pack_listed_panels(from + begin * kPanel, z.dim(1), rows.data(), t, std::min(width, end * kPanel) - begin * kPanel,
                              packed_panels + begin * panel_size);
  });

  // Tiles of a block stay in the second-level cache while panels pass by.
  constexpr int64_t kBlockBytes = int64_t{512} << 10;
  const RowTiles all(n, table_.f32.tile_rows);
  const int64_t tile_size = (table_.f32.packed_bytes(all.height, t) / 4 + 15) / 16 * 16;
  const int64_t block = std::clamp<int64_t>(kBlockBytes / (tile_size * 4), 1, all.count);
  auto* packed_tiles = reinterpret_cast<float*>(tile_scratch.resize(block * tile_size * 4));
  const int64_t grain = num_threads() == 1 ? panels : std::max<int64_t>(1, panels / (4 * num_threads()));
  for (int64_t tile = 0; tile < all.count; tile += block) {
    const int64_t tiles = std::min(block, all.count - tile);
    parallel_for(tiles, 2, [&](int64_t begin, int64_t end) {
      const int64_t column = (tile + begin) * all.height;
      table_.pack_listed_tiles(from + column, z.dim(1), width - column, rows.data(), t,
                               std::min(n, (tile + end) * all.height) - column, all.height, tile_size,
                               packed_tiles + begin * tile_size);
    });
    const int64_t diagonal = tile * all.height / kPanel;  // the first panel that the block needs
    parallel_for(panels - diagonal, grain, [&](int64_t begin, int64_t end) {
      for (int64_t p = diagonal + begin; p < diagonal + end; ++p) {
        const int64_t columns = std::min<int64_t>(kPanel, width - p * kPanel);
        for (int64_t i = 0; i < tiles; ++i) {
          const int64_t row = (tile + i) * all.height;
          if (row >= p * kPanel + columns) break;  // left of the diagonal
          table_.f32.tile(packed_tiles + i * tile_size, all.rows_of(tile + i), packed_panels + p * panel_size, t,
                          out + row * width + p * kPanel, width, columns, false);
        }
      }
    });
  }
}

void CpuBackend::add_column_moments(const Tensor& x, std::span<double> sum, std::span<double> square) const {
  check_matrix("add_column_moments", "x", x, -1, -1);
  const int64_t n = x.dim(1);
  CMOE_CHECK(static_cast<int64_t>(sum.size()) == n && static_cast<int64_t>(square.size()) == n,
             "add_column_moments: {} sums and {} squares, expected {} of each", sum.size(), square.size(), n);
  parallel_for(n, 512, [&](int64_t begin, int64_t end) {
    table_.add_column_moments(x.data<float>() + begin, n, x.dim(0), end - begin, sum.data() + begin, square.data() + begin);
  });
}

}  // namespace cmoe::cpu

// Matrix products: weights are packed once; x is packed per call in blocks of tiles, which all threads then read.
#include <algorithm>
#include <cstring>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/gemm.h"
#include "backend/cpu/large_pages.h"
#include "base/error.h"
#include "base/parallel.h"

namespace cmoe::cpu {
namespace {

using kernels::kPanel;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls body(first tile, last tile, first panel, last panel) so that every pair is met once. Enough pieces for the threads, and
// none so small that handing it out costs more than doing it.
void for_each_piece(int64_t tiles, int64_t panels, double flop_per_pair, int64_t panel_multiple,
                    const std::function<void(int64_t, int64_t, int64_t, int64_t)>& body) {
  constexpr double kSmallest = 2e5;  // FLOP: a few microseconds
  const int64_t wanted = num_threads() == 1 ? 1 : 6 * num_threads();
  int64_t panel_grain = std::max<int64_t>(1, panels / wanted);
  if (panel_grain > 1 || tiles == 1) panel_grain = ceil_div(panel_grain, panel_multiple) * panel_multiple;
  panel_grain =
      std::min(panels, std::max(panel_grain, static_cast<int64_t>(kSmallest / flop_per_pair / static_cast<double>(tiles))));
  const int64_t columns = ceil_div(panels, std::max<int64_t>(panel_grain, 1));
  const int64_t tile_grain = std::max<int64_t>(1, tiles / std::max<int64_t>(1, ceil_div(wanted, columns)));
  const int64_t rows = ceil_div(tiles, tile_grain);
  parallel_for(rows * columns, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = i % rows * tile_grain, p = i / rows * panel_grain;
      body(t, std::min(tiles, t + tile_grain), p, std::min(panels, p + panel_grain));
    }
  });
}

}  // namespace

RowTiles::RowTiles(int64_t rows, int64_t most) {
  count = ceil_div(rows, most);
  height = count == 0 ? 0 : ceil_div(rows, count);  // even tiles: 16 rows are two of 8, not 14 and 2
  count = count == 0 ? 0 : ceil_div(rows, height);
}

void multiply(const kernels::Gemm& gemm, int64_t rows, int64_t k, const PackRows& pack, const std::byte* panels,
              int64_t panel_bytes, int64_t n, float* y, int64_t ldy, bool add) {
  if (rows == 0 || n == 0) return;
  // Rows of x packed at a time: they and a panel should stay in the second-level cache.
  const int64_t block = std::max<int64_t>(gemm.tile_rows, std::min<int64_t>(rows, gemm.tile_rows * 24));
  thread_local Scratch scratch;
  for (int64_t row = 0; row < rows; row += block) {
    const int64_t block_rows = std::min(block, rows - row);
    const RowTiles tiles(block_rows, gemm.tile_rows);
    const int64_t stride = ceil_div(gemm.packed_bytes(tiles.height, k), 64) * 64;
    std::byte* packed = scratch.resize(stride * tiles.count);
    const auto height = [&](int64_t tile) { return std::min(tiles.height, block_rows - tile * tiles.height); };
    parallel_for(tiles.count, std::max<int64_t>(1, 16384 / (tiles.height * std::max<int64_t>(k, 1))),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t t = begin; t < end; ++t) pack(row + t * tiles.height, height(t), packed + t * stride);
                 });
    const double flop = 2.0 * static_cast<double>(tiles.height * kPanel * std::max<int64_t>(k, 1));
    for_each_piece(tiles.count, ceil_div(n, kPanel), flop, tiles.height <= 4 ? 4 : 1,
                   [&](int64_t tile_begin, int64_t tile_end, int64_t panel_begin, int64_t panel_end) {
                     const bool together = tiles.count == 1;  // few rows: the kernel takes several panels at once
                     const int64_t step = together ? panel_end - panel_begin : 1;
                     for (int64_t p = panel_begin; p < panel_end; p += step) {
                       const int64_t column = p * kPanel, columns = std::min(n - column, step * kPanel);
                       for (int64_t t = tile_begin; t < tile_end; ++t) {
                         gemm.tile(packed + t * stride, height(t), panels + p * panel_bytes, k,
                                   y + (row + t * tiles.height) * ldy + column, ldy, columns, add);
                       }
                     }
                   });
  }
}

Weight CpuBackend::prepare(const Tensor& weight, DType dtype) const {
  CMOE_CHECK(weight.shape().size() == 2, "prepare: a weight has shape {}, expected [out_features, in_features]",
             to_string(weight.shape()));
  CMOE_CHECK(dtype == DType::f32 || dtype == DType::bf16, "prepare: kept type {}, expected f32 or bf16", name_of(dtype));
  const DType from = weight.dtype();
  CMOE_CHECK(from == DType::f32 || from == DType::f16 || from == DType::bf16,
             "prepare: a weight of {}, expected f32, f16 or bf16", name_of(from));
  const int64_t n = weight.dim(0), k = weight.dim(1), panels = ceil_div(n, kPanel);
  auto packed = std::make_shared<PackedWeight>();
  packed->panel_bytes = dtype == DType::f32 ? k * kPanel * 4 : ceil_div(k, 2) * 2 * kPanel * 2;
  packed->panels = allocate_on_large_pages(panels * packed->panel_bytes);
  auto* bytes = static_cast<std::byte*>(packed->panels.raw());
  parallel_for(k == 0 ? 0 : panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t rows = std::min<int64_t>(kPanel, n - p * kPanel);
      Tensor part = weight.rows(p * kPanel, p * kPanel + rows);
      std::byte* panel = bytes + p * packed->panel_bytes;
      if (dtype == DType::f32) {
        if (from == DType::bf16) {
          Tensor wide(DType::f32, {rows, k});
          table_.widen_bf16(part.data<uint16_t>(), rows * k, wide.data<float>());
          part = wide;
        }
        table_.pack_panel_f32(part.to(DType::f32).data<float>(), rows, k, reinterpret_cast<float*>(panel));
      } else {
        if (from != DType::bf16) {
          const Tensor wide = part.to(DType::f32);
          part = Tensor(DType::bf16, {rows, k});
          table_.narrow_bf16(wide.data<float>(), rows * k, part.data<uint16_t>());
        }
        table_.pack_panel_bf16(part.data<uint16_t>(), rows, k, reinterpret_cast<uint16_t*>(panel));
      }
    }
  });
  return Weight(n, k, dtype, std::move(packed));
}

void CpuBackend::linear(const Tensor& x, const Weight& weight, Tensor& y, bool accumulate) const {
  CMOE_CHECK(weight.defined(), "linear: the weight is empty; prepare() it first");
  const int64_t k = weight.in_features(), n = weight.out_features();
  check_matrix("linear", "x", x, -1, k);
  const int64_t rows = x.dim(0);
  check_matrix("linear", "y", y, rows, n);
  if (rows == 0 || n == 0) return;
  if (k == 0) {
    if (!accumulate) std::memset(y.raw(), 0, static_cast<size_t>(y.bytes()));
    return;
  }
  const kernels::Gemm& product = gemm(weight.dtype());
  const auto& packed = static_cast<const PackedWeight&>(weight.impl());
  const float* from = x.data<float>();
  multiply(
      product, rows, k, [&](int64_t row, int64_t count, void* to) { product.pack(from + row * k, k, count, k, to); },
      packed.panel(0), packed.panel_bytes, n, y.data<float>(), n, accumulate);
}

void CpuBackend::multiply_transposed(const Tensor& a, const Tensor& b, Tensor& c, bool accumulate) const {
  check_matrix("multiply_transposed", "a", a, -1, -1);
  const int64_t t = a.dim(0), n = a.dim(1);
  check_matrix("multiply_transposed", "b", b, t, -1);
  const int64_t m = b.dim(1);
  check_matrix("multiply_transposed", "c", c, n, m);
  if (n == 0 || m == 0) return;
  if (t == 0) {
    if (!accumulate) std::memset(c.raw(), 0, static_cast<size_t>(c.bytes()));
    return;
  }
  // b plays the weight with k = t, packed here; columns of a play the rows of x.
  thread_local Scratch scratch;
  const int64_t panels = ceil_div(m, kPanel), panel_bytes = t * kPanel * 4;
  std::byte* packed = scratch.resize(panels * panel_bytes);
  const float *from_a = a.data<float>(), *from_b = b.data<float>();
  parallel_for(panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      table_.pack_columns_panel(from_b + p * kPanel, m, std::min<int64_t>(kPanel, m - p * kPanel), t,
                                reinterpret_cast<float*>(packed + p * panel_bytes));
    }
  });
  multiply(
      table_.f32, n, t, [&](int64_t column, int64_t count, void* to) { table_.pack_columns(from_a + column, n, count, t, to); },
      packed, panel_bytes, m, c.data<float>(), m, accumulate);
}

}  // namespace cmoe::cpu

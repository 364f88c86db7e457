// Matrix products: weights are packed once; x is packed per call in blocks of tiles, which all threads then read.
#include <algorithm>
#include <cstring>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/large_pages.h"
#include "backend/cpu/narrow_weight.h"
#include "backend/cpu/onednn.h"
#include "backend/cpu/packed_weight.h"
#include "base/error.h"
#include "base/parallel.h"

namespace cmoe::cpu {
namespace {

using kernels::kPanel;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls body(first tile, last tile, first unit, last unit) so that every pair is met once. Enough pieces for the threads, and
// none so small that handing it out costs more than doing it.
void for_each_piece(int64_t tiles, int64_t units, double flop_per_pair, int64_t unit_multiple,
                    const std::function<void(int64_t, int64_t, int64_t, int64_t)>& body) {
  constexpr double kSmallest = 2e5;  // FLOP: a few microseconds
  const int64_t wanted = num_threads() == 1 ? 1 : 6 * num_threads();
  int64_t unit_grain = std::max<int64_t>(1, units / wanted);
  if (unit_grain > 1 || tiles == 1) unit_grain = ceil_div(unit_grain, unit_multiple) * unit_multiple;
  unit_grain =
      std::min(units, std::max(unit_grain, static_cast<int64_t>(kSmallest / flop_per_pair / static_cast<double>(tiles))));
  const int64_t columns = ceil_div(units, std::max<int64_t>(unit_grain, 1));
  const int64_t tile_grain = std::max<int64_t>(1, tiles / std::max<int64_t>(1, ceil_div(wanted, columns)));
  const int64_t rows = ceil_div(tiles, tile_grain);
  parallel_for(rows * columns, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = i % rows * tile_grain, p = i / rows * unit_grain;
      body(t, std::min(tiles, t + tile_grain), p, std::min(units, p + unit_grain));
    }
  });
}

}  // namespace

RowTiles::RowTiles(int64_t rows_, int64_t most) : rows(rows_), count(ceil_div(rows, most)), height(0) {
  if (count == 0) return;
  height = ceil_div(rows, count);
  count = ceil_div(rows, height);
}

PackedRows::PackedRows(const PackedWeight& weight, int64_t rows, const Pack& pack)
    : tiles_(rows, weight.tile_rows()), stride_(ceil_div(weight.packed_bytes(tiles_.height), 64) * 64) {
  thread_local Scratch scratch;
  data_ = scratch.resize(stride_ * tiles_.count);
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, tiles_.height * weight.k()));
  parallel_for(tiles_.count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) pack(t * tiles_.height, tiles_.rows_of(t), data_ + t * stride_);
  });
}

void multiply(const PackedWeight& weight, int64_t rows, const PackedRows::Pack& pack, float* y, bool add) {
  const int64_t n = weight.n(), unit = weight.unit();
  if (rows == 0 || n == 0) return;
  // Rows of x packed at a time: they and a unit of weights should stay in the second-level cache.
  const RowTiles blocks(rows, 336);
  for (int64_t b = 0; b < blocks.count; ++b) {
    const int64_t first = b * blocks.height;
    const PackedRows packed(weight, blocks.rows_of(b),
                            [&](int64_t row, int64_t count, void* to) { pack(first + row, count, to); });
    const RowTiles& tiles = packed.tiles();
    const double flop = 2.0 * static_cast<double>(tiles.height * unit * weight.k());
    const bool few = tiles.count == 1;  // the kernel then takes several units at once
    for_each_piece(tiles.count, ceil_div(n, unit), flop, few && unit == kPanel ? 4 : 1,
                   [&](int64_t tile_begin, int64_t tile_end, int64_t unit_begin, int64_t unit_end) {
                     const int64_t step = few ? unit_end - unit_begin : 1;
                     for (int64_t u = unit_begin; u < unit_end; u += step) {
                       const int64_t columns = std::min(n - u * unit, step * unit);
                       for (int64_t t = tile_begin; t < tile_end; ++t) {
                         weight.tile(packed.tile(t), tiles.rows_of(t), u, columns,
                                     y + (first + t * tiles.height) * n + u * unit, n, add);
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
  if (dtype == DType::bf16 && isa_ >= CpuIsa::amx) {
    return Weight(weight.dim(0), weight.dim(1), dtype, make_onednn_weight(weight.to(DType::bf16)));
  }
  const int64_t n = weight.dim(0), k = weight.dim(1), panels = ceil_div(n, kPanel);
  const int64_t panel_bytes = dtype == DType::f32 ? k * kPanel * 4 : ceil_div(k, 2) * 2 * kPanel * 2;
  const auto memory = std::make_shared<const Tensor>(allocate_on_large_pages(panels * panel_bytes));
  auto* bytes = static_cast<std::byte*>(memory->raw());
  parallel_for(k == 0 ? 0 : panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t rows = std::min<int64_t>(kPanel, n - p * kPanel);
      Tensor part = weight.rows(p * kPanel, p * kPanel + rows);
      std::byte* panel = bytes + p * panel_bytes;
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
  return Weight(n, k, dtype, std::make_shared<Panels>(n, k, gemm(dtype), panel_bytes, bytes, memory, dtype));
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
  if (const auto* narrow = dynamic_cast<const NarrowWeight*>(&weight.impl())) return narrow_linear(x, *narrow, y, accumulate);
  const auto& packed = static_cast<const PackedWeight&>(weight.impl());
  const float* from = x.data<float>();
  multiply(
      packed, rows, [&](int64_t row, int64_t count, void* to) { packed.pack(from + row * k, count, to); }, y.data<float>(),
      accumulate);
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
  if (std::min(n, m) <= kNarrow) return narrow_outer(a, b, c, accumulate);
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
  const Panels as_weight(m, t, table_.f32, panel_bytes, packed, nullptr);
  multiply(
      as_weight, n, [&](int64_t column, int64_t count, void* to) { table_.pack_columns(from_a + column, n, count, t, to); },
      c.data<float>(), accumulate);
}

}  // namespace cmoe::cpu

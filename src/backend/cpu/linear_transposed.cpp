// dx = dy W on the weights that linear() reads: a block of features is transposed into scratch panels, then multiplied.
#include <algorithm>
#include <cstring>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/narrow_weight.h"
#include "backend/cpu/packed_weight.h"
#include "base/error.h"
#include "base/parallel.h"

namespace cmoe::cpu {
namespace {

using kernels::kPanel;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The square of a panel at inputs [column, column + columns), columns <= kPanel, as [feature][column].
void transpose_square(const kernels::Table& table, DType dtype, const std::byte* panel, int64_t column, int64_t columns,
                      std::byte* to) {
  if (dtype == DType::f32) {
    // [k][kPanel] read as a matrix [columns, kPanel] is W^T already; packing it gives [feature][column].
    table.pack_panel_f32(reinterpret_cast<const float*>(panel) + column * kPanel, columns, kPanel,
                         reinterpret_cast<float*>(to));
    return;
  }
  table.transpose_panel_bf16(reinterpret_cast<const uint16_t*>(panel) + column * kPanel, columns,
                             reinterpret_cast<uint16_t*>(to));
}

// Features [unit, ...) of a weight as panels over k of `features` rows, ready to multiply dy[:, features] with.
struct Block {
  const kernels::Gemm& gemm;
  int64_t panel_bytes;
  std::byte* panels;
};

Block transpose_panels(const kernels::Table& table, const Panels& weight, int64_t unit, int64_t features, Scratch& scratch) {
  const int64_t k = weight.k(), element = size_of(weight.dtype()), units = ceil_div(features, kPanel);
  // A bf16 panel ends after an even number of features.
  const int64_t bytes = (weight.dtype() == DType::f32 ? features : ceil_div(features, 2) * 2) * kPanel * element;
  std::byte* panels = scratch.resize(ceil_div(k, kPanel) * bytes);
  parallel_for(ceil_div(k, kPanel), 4, [&](int64_t begin, int64_t end) {
    alignas(64) std::byte square[kPanel * kPanel * 4];
    for (int64_t p = begin; p < end; ++p) {
      for (int64_t u = 0; u < units; ++u) {
        std::byte* to = panels + p * bytes + u * kPanel * kPanel * element;
        const int64_t room = std::min(kPanel * kPanel * element, bytes - u * kPanel * kPanel * element);
        const bool whole = room == kPanel * kPanel * element;
        transpose_square(table, weight.dtype(), weight.panel(unit + u), p * kPanel, std::min<int64_t>(kPanel, k - p * kPanel),
                         whole ? to : square);
        if (!whole) std::memcpy(to, square, static_cast<size_t>(room));
      }
    }
  });
  return {weight.gemm(), bytes, panels};
}

Block transpose_rows(const kernels::Table& table, const PackedWeight& weight, int64_t unit, int64_t features,
                     Scratch& scratch) {
  const int64_t k = weight.k(), bytes = features * kPanel * 4;
  thread_local Scratch rows_scratch;
  auto* rows = reinterpret_cast<float*>(rows_scratch.resize(features * k * 4));
  parallel_for(ceil_div(features, weight.unit()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) weight.unpack(unit + u, rows + u * weight.unit() * k);
  });
  std::byte* panels = scratch.resize(ceil_div(k, kPanel) * bytes);
  parallel_for(ceil_div(k, kPanel), 4, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      table.pack_columns_panel(rows + p * kPanel, k, std::min<int64_t>(kPanel, k - p * kPanel), features,
                               reinterpret_cast<float*>(panels + p * bytes));
    }
  });
  return {table.f32, bytes, panels};
}

}  // namespace

void Panels::unpack(int64_t unit, float* rows) const {
  const int64_t features = std::min<int64_t>(kPanel, n() - unit * kPanel);
  for (int64_t f = 0; f < features; ++f) {
    for (int64_t i = 0; i < k(); ++i) {
      if (dtype_ == DType::f32) {
        rows[f * k() + i] = reinterpret_cast<const float*>(panel(unit))[i * kPanel + f];
      } else {
        rows[f * k() + i] = to_f32(reinterpret_cast<const bf16*>(panel(unit))[i / 2 * kPanel * 2 + f * 2 + i % 2]);
      }
    }
  }
}

void CpuBackend::linear_transposed(const Tensor& dy, const Weight& weight, Tensor& dx, bool accumulate) const {
  CMOE_CHECK(weight.defined(), "linear_transposed: the weight is empty; prepare() it first");
  const int64_t k = weight.in_features(), n = weight.out_features();
  check_matrix("linear_transposed", "dy", dy, -1, n);
  const int64_t rows = dy.dim(0);
  check_matrix("linear_transposed", "dx", dx, rows, k);
  if (rows == 0 || k == 0) return;
  if (n == 0) {
    if (!accumulate) std::memset(dx.raw(), 0, static_cast<size_t>(dx.bytes()));
    return;
  }
  if (const auto* narrow = dynamic_cast<const NarrowWeight*>(&weight.impl())) {
    return narrow_linear_transposed(dy, *narrow, dx, accumulate);
  }
  const auto& packed = static_cast<const PackedWeight&>(weight.impl());
  const auto* panels = dynamic_cast<const Panels*>(&packed);
  // Units taken at a time: scratch of about 2 MiB. A function of the weight's shape alone, as it orders the sum.
  const int64_t unit = packed.unit(), units = ceil_div(n, unit);
  const int64_t step = std::max<int64_t>(1, (int64_t{2} << 20) / (ceil_div(k, kPanel) * kPanel * unit * 4));
  thread_local Scratch scratch;
  for (int64_t first = 0; first < units; first += step) {
    const int64_t features = std::min(n - first * unit, step * unit);
    const Block block = panels ? transpose_panels(table_, *panels, first, features, scratch)
                               : transpose_rows(table_, packed, first, features, scratch);
    const Panels transposed(k, features, block.gemm, block.panel_bytes, block.panels, nullptr);
    const float* from = dy.data<float>() + first * unit;
    multiply(
        transposed, rows,
        [&](int64_t row, int64_t count, void* to) { block.gemm.pack(from + row * n, n, count, features, to); },
        dx.data<float>(), accumulate || first > 0);
  }
}

}  // namespace cmoe::cpu

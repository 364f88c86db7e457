#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "kernels/cpu/table.h"

namespace cmoe::cpu {

/// `rows` rows cut into `count` tiles of `height` (the last may be shorter), height <= most.
struct RowTiles {
  RowTiles(int64_t rows, int64_t most);
  int64_t count, height;
};

/// Packs `count` rows of x from `row` on into `to`.
using PackRows = std::function<void(int64_t row, int64_t count, void* to)>;

/// y [rows, n], row stride ldy, (+)= x [rows, k] times n features of packed panels, on all threads. k > 0.
void multiply(const kernels::Gemm& gemm, int64_t rows, int64_t k, const PackRows& pack, const std::byte* panels,
              int64_t panel_bytes, int64_t n, float* y, int64_t ldy, bool add);

}  // namespace cmoe::cpu

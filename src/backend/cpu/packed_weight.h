#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "backend/backend.h"
#include "kernels/cpu/table.h"

namespace cmoe::cpu {

/// A weight [n, k] in the layout of one way to multiply, and that way: rows of x are packed in tiles, then each tile meets
/// units of consecutive features. Calls are safe from several threads at once.
class PackedWeight : public Weight::Impl {
 public:
  PackedWeight(int64_t n, int64_t k, int64_t unit, int64_t tile_rows) : n_(n), k_(k), unit_(unit), tile_rows_(tile_rows) {}

  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  int64_t unit() const { return unit_; }            ///< features of a unit; the last may have fewer
  int64_t tile_rows() const { return tile_rows_; }  ///< rows of x in a tile at most

  virtual int64_t packed_bytes(int64_t rows) const = 0;
  /// Packs `rows` (1 .. tile_rows) rows of x [rows, k].
  virtual void pack(const float* x, int64_t rows, void* packed) const = 0;
  /// y [rows, columns] (+)= packed rows times `columns` features from `unit` on. y points at the first of them.
  virtual void tile(const void* packed, int64_t rows, int64_t unit, int64_t columns, float* y, int64_t ldy, bool add) const = 0;
  /// The weights of a unit's features, rows [features, k] f32.
  virtual void unpack(int64_t unit, float* rows) const = 0;

 private:
  int64_t n_, k_, unit_, tile_rows_;
};

/// Panels of kernels/cpu/table.h, in `dtype`.
class Panels : public PackedWeight {
 public:
  Panels(int64_t n, int64_t k, const kernels::Gemm& gemm, int64_t panel_bytes, const void* panels,
         std::shared_ptr<const void> owner, DType dtype = DType::f32)
      : PackedWeight(n, k, kernels::kPanel, gemm.tile_rows),
        gemm_(gemm),
        panel_bytes_(panel_bytes),
        dtype_(dtype),
        panels_(static_cast<const std::byte*>(panels)),
        owner_(std::move(owner)) {}

  int64_t packed_bytes(int64_t rows) const override { return gemm_.packed_bytes(rows, k()); }
  void pack(const float* x, int64_t rows, void* packed) const override { gemm_.pack(x, k(), rows, k(), packed); }
  void tile(const void* packed, int64_t rows, int64_t unit, int64_t columns, float* y, int64_t ldy, bool add) const override {
    gemm_.tile(packed, rows, panels_ + unit * panel_bytes_, k(), y, ldy, columns, add);
  }
  void unpack(int64_t unit, float* rows) const override;

  const kernels::Gemm& gemm() const { return gemm_; }
  DType dtype() const { return dtype_; }
  const std::byte* panel(int64_t unit) const { return panels_ + unit * panel_bytes_; }

 private:
  const kernels::Gemm& gemm_;
  int64_t panel_bytes_;
  DType dtype_;
  const std::byte* panels_;
  std::shared_ptr<const void> owner_;
};

/// `rows` rows cut into `count` tiles of `height` (the last may be shorter), height <= most: 16 rows of at most 14 are two
/// of 8.
struct RowTiles {
  RowTiles(int64_t rows, int64_t most);
  int64_t rows_of(int64_t tile) const { return std::min(height, rows - tile * height); }
  int64_t rows, count, height;
};

/// Rows of x packed in tiles, by all threads, in the calling thread's scratch: valid until its next PackedRows.
class PackedRows {
 public:
  /// Packs `count` rows from `row` on into `to`.
  using Pack = std::function<void(int64_t row, int64_t count, void* to)>;
  PackedRows(const PackedWeight& weight, int64_t rows, const Pack& pack);

  const RowTiles& tiles() const { return tiles_; }
  const std::byte* tile(int64_t index) const { return data_ + index * stride_; }

 private:
  RowTiles tiles_;
  int64_t stride_;
  std::byte* data_;
};

/// y [rows, n], row stride n, (+)= x [rows, k] W^T on all threads; x comes through `pack`. k > 0.
void multiply(const PackedWeight& weight, int64_t rows, const PackedRows::Pack& pack, float* y, bool add);

}  // namespace cmoe::cpu

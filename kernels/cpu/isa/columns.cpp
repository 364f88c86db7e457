// Columns of row-major matrices, a few rows at a time so that every cache line is read once.
#include "kernels/cpu/isa/kernels.h"
#include "kernels/cpu/isa/simd.h"

namespace cmoe::kernels::CMOE_ISA {
namespace {

constexpr int64_t kRowsAtOnce = 16;

typedef double DoubleVec __attribute__((vector_size(kLanes * 4)));
typedef double LooseDoubleVec __attribute__((vector_size(kLanes * 4), aligned(8), may_alias));
typedef float HalfVec __attribute__((vector_size(kLanes * 2), aligned(4), may_alias));
constexpr int kDoubles = kLanes / 2;

}  // namespace

void pack_listed_tiles(const float* z, int64_t ldz, int64_t readable, const int32_t* rows, int64_t t, int64_t columns,
                       int64_t height, int64_t stride, float* packed) {
  for (int64_t begin = 0; begin < t; begin += kRowsAtOnce) {
    const int64_t end = smaller(t, begin + kRowsAtOnce);
    for (int64_t c = 0; c < columns; c += height) {
      const int64_t h = smaller(height, columns - c);
      float* to = packed + c / height * stride + begin * h;
      if (h <= kLanes && c + kLanes <= readable) {
        // Whole vectors: the next row overwrites what is too much.
        for (int64_t i = begin; i < end; ++i, to += h) store(to, load(z + rows[i] * ldz + c));
      } else {
        for (int64_t i = begin; i < end; ++i, to += h) {
          for (int64_t j = 0; j < h; ++j) to[j] = z[rows[i] * ldz + c + j];
        }
      }
    }
  }
}

void pack_listed_panels(const float* z, int64_t ldz, const int32_t* rows, int64_t t, int64_t columns, float* panels) {
  for (int64_t begin = 0; begin < t; begin += kRowsAtOnce) {
    const int64_t end = smaller(t, begin + kRowsAtOnce);
    for (int64_t c = 0; c < columns; c += kPanel) {
      float* to = panels + c * t + begin * kPanel;
      if (c + kPanel <= columns) {
        for (int64_t i = begin; i < end; ++i, to += kPanel) {
          for (int64_t j = 0; j < kPanel; j += kLanes) store(to + j, load(z + rows[i] * ldz + c + j));
        }
      } else {
        for (int64_t i = begin; i < end; ++i, to += kPanel) {
          for (int64_t j = 0; j < kPanel; ++j) to[j] = c + j < columns ? z[rows[i] * ldz + c + j] : 0.0f;
        }
      }
    }
  }
}

void add_column_moments(const float* x, int64_t ldx, int64_t rows, int64_t columns, double* sum, double* square) {
  constexpr int kRows = 4;
  const auto add = [&](int64_t row, int64_t count, int64_t c) {
    DoubleVec s = *reinterpret_cast<const LooseDoubleVec*>(sum + c), q = *reinterpret_cast<const LooseDoubleVec*>(square + c);
    for (int64_t r = row; r < row + count; ++r) {
      const auto value = __builtin_convertvector(*reinterpret_cast<const HalfVec*>(x + r * ldx + c), DoubleVec);
      s += value;
      q += value * value;  // the square of an f32 is exact
    }
    *reinterpret_cast<LooseDoubleVec*>(sum + c) = s;
    *reinterpret_cast<LooseDoubleVec*>(square + c) = q;
  };
  for (int64_t row = 0; row < rows; row += kRows) {
    const int64_t count = smaller(kRows, rows - row);
    int64_t c = 0;
    if (count == kRows) {
      for (; c + kDoubles <= columns; c += kDoubles) add(row, kRows, c);
    } else {
      for (; c + kDoubles <= columns; c += kDoubles) add(row, count, c);
    }
    for (; c < columns; ++c) {
      for (int64_t r = row; r < row + count; ++r) {
        const double value = static_cast<double>(x[r * ldx + c]);
        sum[c] += value;
        square[c] += value * value;
      }
    }
  }
}

}  // namespace cmoe::kernels::CMOE_ISA

// Dropout, and what LoRA does behind it: a block of x is masked in the cache and multiplied there, so that the masked x is
// never written out.
#include <algorithm>
#include <array>
#include <cmath>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/narrow_weight.h"
#include "base/error.h"
#include "base/parallel.h"
#include "base/random.h"

namespace cmoe::cpu {
namespace {

constexpr int64_t kRows = 24;  // rows of x that are masked at a time, a multiple of what the kernels take
// Columns of a piece of backward: multiples of what the kernels take, as many as fit the cache, if threads leave so many.
constexpr int64_t kColumns = 96, kMostColumns = 3 * kColumns;

// A mask over rows of d elements, as the kernel wants it.
class Masker {
 public:
  Masker(const kernels::Table& table, const DropoutMask& mask, int64_t d)
      : table_(table),
        row_(mask.row),
        words_(static_cast<uint64_t>((d + 3) / 4)),
        state_(mix_bits(mask.key + kGoldenGamma)),
        threshold_(static_cast<uint32_t>(std::lround(static_cast<double>(mask.p) * 65536))),
        keep_(static_cast<float>(65536.0 / (65536.0 - threshold_))) {}

  /// y (+)= the masked columns [column, column + columns) of `rows` (<= kRows) rows from `row` on; column is a multiple of 4. x
  /// and y point at the first of them.
  void apply(int64_t row, int64_t rows, int64_t column, int64_t columns, const float* x, int64_t ldx, float* y, int64_t ldy,
             bool add) const {
    std::array<uint64_t, kRows> counter;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t number = row_.empty() ? row + r : row_[static_cast<size_t>(row + r)];
      counter[static_cast<size_t>(r)] = static_cast<uint64_t>(number) * words_ + static_cast<uint64_t>(column / 4);
    }
    table_.dropout(x, ldx, rows, columns, state_, counter.data(), threshold_, keep_, y, ldy, add);
  }

 private:
  const kernels::Table& table_;
  std::span<const int32_t> row_;
  uint64_t words_, state_;
  uint32_t threshold_;
  float keep_;
};

void check_mask(const char* where, const DropoutMask& mask, int64_t rows) {
  CMOE_CHECK(mask.row.empty() || static_cast<int64_t>(mask.row.size()) == rows, "{}: {} row numbers; expected {}", where,
             mask.row.size(), rows);
  CMOE_CHECK(mask.p >= 0 && mask.p < 1, "{}: probability {}; expected one in [0, 1)", where, mask.p);
}

// A as [r, d], or null where it is kept in another way.
const float* narrow_rows(const Weight& a) {
  const auto* narrow = dynamic_cast<const NarrowWeight*>(&a.impl());
  return narrow && !narrow->transposed ? narrow->matrix.data<float>() : nullptr;
}

bool all_narrow(std::span<const Weight> a) {
  return std::all_of(a.begin(), a.end(), [](const Weight& weight) { return narrow_rows(weight) != nullptr; });
}

}  // namespace

void CpuBackend::dropout(const Tensor& x, const DropoutMask& mask, Tensor& y, bool accumulate) const {
  check_matrix("dropout", "x", x, -1, -1);
  const int64_t rows = x.dim(0), d = x.dim(1);
  check_matrix("dropout", "y", y, rows, d);
  check_mask("dropout", mask, rows);
  const Masker masker(table_, mask, d);
  parallel_for(rows, kRows, [&](int64_t begin, int64_t end) {
    masker.apply(begin, end - begin, 0, d, x.row<float>(begin), d, y.row<float>(begin), d, accumulate);
  });
}

void CpuBackend::dropout_linear(const Tensor& x, const DropoutMask& mask, std::span<const Weight> a,
                                std::span<Tensor> u) const {
  const char* where = "dropout_linear";
  check_matrix(where, "x", x, -1, -1);
  const int64_t rows = x.dim(0), d = x.dim(1);
  check_mask(where, mask, rows);
  CMOE_CHECK(a.size() == u.size(), "{}: {} matrices and {} results", where, a.size(), u.size());
  for (size_t i = 0; i < a.size(); ++i) {
    CMOE_CHECK(a[i].in_features() == d, "{}: A takes {} inputs, x has {}", where, a[i].in_features(), d);
    check_matrix(where, "u", u[i], rows, a[i].out_features());
  }
  if (!all_narrow(a)) {
    Tensor kept(DType::f32, x.shape());
    dropout(x, mask, kept, false);
    for (size_t i = 0; i < a.size(); ++i) linear(kept, a[i], u[i], false);
    return;
  }
  const Masker masker(table_, mask, d);
  parallel_for(rows, std::clamp<int64_t>(8192 / std::max<int64_t>(d, 1) / 6 * 6, 6, kRows), [&](int64_t begin, int64_t end) {
    thread_local Scratch scratch;
    const float* from = x.row<float>(begin);
    if (mask.p > 0) {
      auto* kept = reinterpret_cast<float*>(scratch.resize((end - begin) * d * size_of(DType::f32)));
      masker.apply(begin, end - begin, 0, d, from, d, kept, d, false);
      from = kept;
    }
    for (size_t i = 0; i < a.size(); ++i) {
      const int64_t n = a[i].out_features();
      table_.narrow_dots(from, d, end - begin, narrow_rows(a[i]), n, d, u[i].row<float>(begin), n);
    }
  });
}

void CpuBackend::dropout_linear_backward(const Tensor& x, const DropoutMask& mask, std::span<const Weight> a,
                                         std::span<const Tensor> du, std::span<Tensor> da, Tensor& dx) const {
  const char* where = "dropout_linear_backward";
  check_matrix(where, "x", x, -1, -1);
  const int64_t rows = x.dim(0), d = x.dim(1);
  check_mask(where, mask, rows);
  CMOE_CHECK(a.size() == du.size() && a.size() == da.size(), "{}: {} matrices, {} gradients of results and {} of matrices",
             where, a.size(), du.size(), da.size());
  for (size_t i = 0; i < a.size(); ++i) {
    check_matrix(where, "du", du[i], rows, a[i].out_features());
    check_matrix(where, "da", da[i], a[i].out_features(), d);
  }
  check_matrix(where, "dx", dx, rows, d);
  if (a.empty()) return;
  if (!all_narrow(a)) {
    Tensor work(DType::f32, x.shape());
    dropout(x, mask, work, false);
    for (size_t i = 0; i < a.size(); ++i) multiply_transposed(du[i], work, da[i], true);
    for (size_t i = 0; i < a.size(); ++i) linear_transposed(du[i], a[i], work, i > 0);
    dropout(work, mask, dx, true);
    return;
  }
  // Columns are split over threads: each of da is then one sum over the rows, in their order.
  const Masker masker(table_, mask, d);
  const int64_t share = (d / num_threads() + kColumns - 1) / kColumns * kColumns;
  parallel_for(d, std::clamp(share, kColumns, kMostColumns), [&](int64_t column, int64_t end) {
    const int64_t columns = end - column;
    alignas(64) std::array<float, static_cast<size_t>(kRows * kMostColumns)> work;
    for (int64_t row = 0; row < rows; row += kRows) {
      const int64_t count = std::min(kRows, rows - row);
      const float* from = x.row<float>(row) + column;
      int64_t stride = d;
      if (mask.p > 0) {
        masker.apply(row, count, column, columns, from, d, work.data(), columns, false);
        from = work.data();
        stride = columns;
      }
      for (size_t i = 0; i < a.size(); ++i) {
        const int64_t n = a[i].out_features();
        table_.narrow_outer(du[i].row<float>(row), n, n, from, stride, columns, count, da[i].data<float>() + column, d, true);
      }
      for (size_t i = 0; i < a.size(); ++i) {
        const int64_t n = a[i].out_features();
        table_.narrow_sums(du[i].row<float>(row), n, count, narrow_rows(a[i]) + column, d, n, columns, work.data(), columns,
                           i > 0);
      }
      float* to = dx.row<float>(row) + column;
      masker.apply(row, count, column, columns, work.data(), columns, to, d, true);
    }
  });
}

}  // namespace cmoe::cpu

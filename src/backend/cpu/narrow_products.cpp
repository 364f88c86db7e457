// Products with a short side: the work of LoRA's matrices.
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/narrow_weight.h"
#include "base/parallel.h"

namespace cmoe::cpu {
namespace {

Tensor transposed(const Tensor& w) {
  const int64_t n = w.dim(0), k = w.dim(1);
  Tensor result(DType::f32, {k, n});
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < k; ++j) result.row<float>(j)[i] = w.row<float>(i)[j];
  }
  return result;
}

// Rows that a thread takes at a time.
int64_t row_grain(int64_t columns) { return std::max<int64_t>(6, 32768 / std::max<int64_t>(columns, 1)); }

// y = x W^T of the narrow kernels, `w` the matrix as it lies.
void times_long_side(const kernels::Table& table, const Tensor& x, const Tensor& w, Tensor& y, bool accumulate) {
  const int64_t n = w.dim(0), k = w.dim(1);
  parallel_for(x.dim(0), row_grain(k), [&](int64_t begin, int64_t end) {
    if (!accumulate) {
      table.narrow_dots(x.row<float>(begin), k, end - begin, w.data<float>(), n, k, y.row<float>(begin), n);
      return;
    }
    float sums[kNarrow];
    for (int64_t t = begin; t < end; ++t) {
      table.narrow_dots(x.row<float>(t), k, 1, w.data<float>(), n, k, sums, n);
      for (int64_t j = 0; j < n; ++j) y.row<float>(t)[j] += sums[j];
    }
  });
}

void times_short_side(const kernels::Table& table, const Tensor& x, const Tensor& w, Tensor& y, bool accumulate) {
  const int64_t n = w.dim(0), k = w.dim(1);
  parallel_for(x.dim(0), row_grain(k), [&](int64_t begin, int64_t end) {
    table.narrow_sums(x.row<float>(begin), n, end - begin, w.data<float>(), k, n, k, y.row<float>(begin), k, accumulate);
  });
}

}  // namespace

Weight CpuBackend::prepare_narrow(const Tensor& weight) const {
  check_matrix("prepare_narrow", "weight", weight, -1, -1);
  const int64_t n = weight.dim(0), k = weight.dim(1);
  if (std::min(n, k) > kNarrow || weight.size() == 0) return prepare(weight, DType::f32);
  auto narrow = std::make_shared<NarrowWeight>();
  narrow->transposed = k < n;
  narrow->matrix = narrow->transposed ? transposed(weight) : weight.clone();
  return Weight(n, k, DType::f32, std::move(narrow));
}

void CpuBackend::narrow_linear(const Tensor& x, const NarrowWeight& weight, Tensor& y, bool accumulate) const {
  if (weight.transposed) {
    times_short_side(table_, x, weight.matrix, y, accumulate);
  } else {
    times_long_side(table_, x, weight.matrix, y, accumulate);
  }
}

void CpuBackend::narrow_linear_transposed(const Tensor& dy, const NarrowWeight& weight, Tensor& dx, bool accumulate) const {
  if (weight.transposed) {
    times_long_side(table_, dy, weight.matrix, dx, accumulate);
  } else {
    times_short_side(table_, dy, weight.matrix, dx, accumulate);
  }
}

// c [n, m] (+)= a [t, n]^T b [t, m], n or m short: the long side's columns are split over threads.
void CpuBackend::narrow_outer(const Tensor& a, const Tensor& b, Tensor& c, bool accumulate) const {
  const int64_t t = a.dim(0), n = a.dim(1), m = b.dim(1);
  const bool first_is_short = n <= m;
  const Tensor &narrow = first_is_short ? a : b, &wide = first_is_short ? b : a;
  const int64_t count = narrow.dim(1), columns = wide.dim(1);
  Tensor sums(DType::f32, {count, columns});
  parallel_for(columns, 96, [&](int64_t begin, int64_t end) {
    table_.narrow_outer(narrow.data<float>(), count, count, wide.data<float>() + begin, columns, end - begin, t,
                        sums.data<float>() + begin, columns, false);
  });
  for (int64_t i = 0; i < n; ++i) {
    float* to = c.row<float>(i);
    for (int64_t j = 0; j < m; ++j) {
      const float sum = first_is_short ? sums.row<float>(i)[j] : sums.row<float>(j)[i];
      to[j] = accumulate ? to[j] + sum : sum;
    }
  }
}

}  // namespace cmoe::cpu

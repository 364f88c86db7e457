#include "carve/columns.h"

#include <algorithm>

#include "backend/host_rows.h"
#include "base/parallel.h"

namespace cmoe {

Tensor gather_columns(const Tensor& matrix, std::span<const int32_t> index) {
  Tensor result(DType::f32, {matrix.dim(0), static_cast<int64_t>(index.size())});
  parallel_for(matrix.dim(0), 64, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* from = matrix.row<float>(t);
      float* to = result.row<float>(t);
      for (size_t i = 0; i < index.size(); ++i) to[i] = from[index[i]];
    }
  });
  return result;
}

Tensor gather_matrix_rows(const Tensor& matrix, std::span<const int32_t> index) {
  const int64_t d = matrix.dim(1);
  Tensor result(DType::f32, {static_cast<int64_t>(index.size()), d});
  for (size_t i = 0; i < index.size(); ++i) {
    std::copy_n(matrix.row<float>(index[i]), d, result.row<float>(static_cast<int64_t>(i)));
  }
  return result;
}

Weight prepare_neurons(const Backend& backend, const Tensor& down, std::span<const int32_t> neurons, DType dtype) {
  return backend.prepare(gather_columns(down, neurons), dtype);
}

void add_neurons_output(const Backend& backend, const Tensor& h, const Weight& down, std::span<const int32_t> neurons,
                        std::span<const int32_t> tokens, int64_t column, Tensor& y) {
  constexpr int64_t kBlock = 512;  // tokens whose activations and outputs stay in a cache meanwhile
  const auto rows = static_cast<int64_t>(tokens.size()), count = static_cast<int64_t>(neurons.size()), d = down.out_features();
  if (rows == 0 || count == 0) return;
  Tensor activations(DType::f32, {std::min(rows, kBlock), count}), outputs(DType::f32, {std::min(rows, kBlock), d});
  for (int64_t first = 0; first < rows; first += kBlock) {
    const std::span<const int32_t> block =
        tokens.subspan(static_cast<size_t>(first)).first(std::min<size_t>(kBlock, rows - first));
    const auto size = static_cast<int64_t>(block.size());
    Tensor part = activations.rows(0, size), output = outputs.rows(0, size);
    parallel_for(size, 64, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const float* from = h.row<float>(block[static_cast<size_t>(k)]);
        float* to = part.row<float>(k);
        for (int64_t i = 0; i < count; ++i) to[i] = from[neurons[static_cast<size_t>(i)]];
      }
    });
    backend.linear(part, down, output);
    parallel_for(size, 64, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        add_row(output.row<float>(k), d, y.row<float>(block[static_cast<size_t>(k)]) + column);
      }
    });
  }
}

std::vector<double> column_squared_norms(const Tensor& weight) {
  std::vector<double> norms(static_cast<size_t>(weight.dim(1)), 0.0);
  for (int64_t row = 0; row < weight.dim(0); ++row) {
    const float* w = weight.row<float>(row);
    for (size_t i = 0; i < norms.size(); ++i) norms[i] += static_cast<double>(w[i]) * w[i];
  }
  return norms;
}

Tensor mask_activations(const Tensor& h, std::span<const int32_t> expert_of, const Routing& routing, int64_t experts) {
  Tensor masked(DType::f32, h.shape());
  parallel_for(h.dim(0), 64, [&](int64_t begin, int64_t end) {
    std::vector<float> factor(static_cast<size_t>(experts) + 2);  // by expert + 2: dropped, shared, experts
    factor[static_cast<size_t>(kSharedNeuron + 2)] = 1.0f;
    for (int64_t t = begin; t < end; ++t) {
      std::fill(factor.begin() + 2, factor.end(), 0.0f);
      for (int32_t e : routing.experts(t)) factor[static_cast<size_t>(e) + 2] = 1.0f;
      const float* from = h.row<float>(t);
      float* to = masked.row<float>(t);
      for (size_t i = 0; i < expert_of.size(); ++i) to[i] = from[i] * factor[static_cast<size_t>(expert_of[i] + 2)];
    }
  });
  return masked;
}

}  // namespace cmoe

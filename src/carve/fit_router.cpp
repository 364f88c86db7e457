#include "carve/fit_router.h"

#include <algorithm>
#include <cmath>

#include "base/parallel.h"
#include "carve/columns.h"
#include "carve/least_squares.h"

namespace cmoe {

Tensor expert_output_norms(const Backend& backend, const Tensor& h, const Tensor& down,
                           const std::vector<std::vector<int32_t>>& experts) {
  const int64_t tokens = h.dim(0), d = down.dim(0);
  Tensor norms(DType::f32, {tokens, static_cast<int64_t>(experts.size())});
  for (size_t j = 0; j < experts.size(); ++j) {
    const auto m = static_cast<int64_t>(experts[j].size());
    const Tensor h_j = gather_columns(h, experts[j]);
    const Tensor down_j = gather_columns(down, experts[j]);  // [d, m]
    const bool quadratic = m < d;
    Tensor product(DType::f32, {tokens, quadratic ? m : d});
    if (quadratic) {
      Tensor square(DType::f32, {m, m});
      backend.multiply_transposed(down_j, down_j, square);
      backend.linear(h_j, backend.prepare(square, DType::f32), product);
    } else {
      backend.linear(h_j, backend.prepare(down_j, DType::f32), product);
    }
    parallel_for(tokens, 256, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const float* p = product.row<float>(t);
        const float* q = quadratic ? h_j.row<float>(t) : p;
        double sum = 0;
        for (int64_t i = 0; i < product.dim(1); ++i) sum += static_cast<double>(p[i]) * q[i];
        norms.row<float>(t)[j] = static_cast<float>(std::sqrt(std::max(sum, 0.0)));
      }
    });
  }
  return norms;
}

void fit_linear_router(const Backend& backend, const Tensor& input, const Tensor& norms, double lambda,
                       const TokenChunks& chunks, Communicator& comm, CarvedLayer& layer) {
  const int64_t d = input.dim(1), experts = norms.dim(1);
  Tensor both(DType::f32, {input.dim(0), d + experts});
  parallel_for(both.dim(0), 64, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      std::copy_n(input.row<float>(t), d, both.row<float>(t));
      std::copy_n(norms.row<float>(t), experts, both.row<float>(t) + d);
    }
  });
  const LinearFit fit = ridge_fit(backend, normal_equations(backend, both, d, chunks, comm), lambda, comm);  // [d, R]
  layer.router_weight = Tensor(DType::f32, {experts, d});
  layer.router_bias = Tensor(DType::f32, {experts});
  for (int64_t j = 0; j < experts; ++j) {
    for (int64_t i = 0; i < d; ++i) {
      layer.router_weight.row<float>(j)[i] = static_cast<float>(fit.weight[static_cast<size_t>(i * experts + j)]);
    }
    layer.router_bias.data<float>()[j] = static_cast<float>(fit.intercept[static_cast<size_t>(j)]);
  }
}

void build_analytical_router(const DenseFfnTensors& dense, std::span<const int32_t> representatives, CarvedLayer& layer) {
  layer.router_gate = gather_matrix_rows(dense.gate, representatives);
  layer.router_up = gather_matrix_rows(dense.up, representatives);
  if (layer.router_kind != RouterKind::authors) return;
  for (Tensor* rows : {&layer.router_gate, &layer.router_up}) {
    for (int64_t j = 0; j < rows->dim(0); ++j) {
      double square = 0;
      for (int64_t i = 0; i < rows->dim(1); ++i) square += std::pow(static_cast<double>(rows->row<float>(j)[i]), 2);
      const double length = std::max(std::sqrt(square), 1e-12);
      for (int64_t i = 0; i < rows->dim(1); ++i) rows->row<float>(j)[i] = static_cast<float>(rows->row<float>(j)[i] / length);
    }
  }
}

Router prepare_router(const Backend& backend, const CarvedLayer& layer, const ExpertShape& shape) {
  Router router{
      .kind = layer.router_kind, .selector = layer.selector, .num_experts_per_tok = shape.active, .threshold = layer.threshold};
  if (layer.router_kind == RouterKind::linear) {
    router.weight = backend.prepare(layer.router_weight, DType::f32);
    router.bias = layer.router_bias;
  } else {
    router.gate_proj = backend.prepare(layer.router_gate, DType::f32);
    router.up_proj = backend.prepare(layer.router_up, DType::f32);
  }
  return router;
}

}  // namespace cmoe

#include "carve/compensate.h"

#include <algorithm>

#include "base/parallel.h"
#include "carve/columns.h"
#include "carve/least_squares.h"
#include "carve/token_sums.h"

namespace cmoe {
namespace {

Tensor difference(const Tensor& a, const Tensor& b) {
  Tensor result(DType::f32, a.shape());
  const auto x = a.span<float>(), y = b.span<float>();
  const auto out = result.span<float>();
  parallel_for(a.size(), 1 << 16, [&](int64_t begin, int64_t end) {
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) out[i] = x[i] - y[i];
  });
  return result;
}

}  // namespace

void compensate_mean(const DenseFfnTensors& dense, const LayerActivations& activations, const Tensor& masked,
                     const std::vector<int32_t>& expert_of, const Routing& routing, Communicator& comm, CarvedLayer& layer) {
  const int64_t d = dense.down.dim(0), f = dense.down.dim(1);
  const auto experts = static_cast<int64_t>(layer.experts.size());
  std::vector<double> dropped_sum = column_sums(activations.h, activations.chunks, comm);
  const std::vector<double> kept_sum = column_sums(masked, activations.chunks, comm);
  for (size_t i = 0; i < dropped_sum.size(); ++i) dropped_sum[i] -= kept_sum[i];
  std::vector<int64_t> taken(static_cast<size_t>(experts), 0);
  for (int32_t e : routing.expert_idx) ++taken[static_cast<size_t>(e)];
  comm.all_reduce_sum(taken);

  std::vector<double> bias(static_cast<size_t>(d), 0.0);
  std::vector<double> per_expert(static_cast<size_t>(experts * d), 0.0);
  for (int64_t row = 0; row < d; ++row) {
    const float* w = dense.down.row<float>(row);
    for (int64_t i = 0; i < f; ++i) {
      const int32_t e = expert_of[static_cast<size_t>(i)];
      if (e == kSharedNeuron) continue;
      const int64_t tokens = activations.chunks.total_tokens - (e >= 0 ? taken[static_cast<size_t>(e)] : 0);
      if (tokens == 0) continue;  // an expert that every token takes is never missed
      const double c = w[i] * dropped_sum[static_cast<size_t>(i)] / static_cast<double>(tokens);
      bias[static_cast<size_t>(row)] += c;
      if (e >= 0) per_expert[static_cast<size_t>(e * d + row)] -= c;
    }
  }
  layer.compensation_bias = Tensor(DType::f32, {d});
  std::transform(bias.begin(), bias.end(), layer.compensation_bias.data<float>(),
                 [](double v) { return static_cast<float>(v); });
  if (experts == 0) return;
  layer.expert_bias = Tensor(DType::f32, {experts, d});
  std::transform(per_expert.begin(), per_expert.end(), layer.expert_bias.data<float>(),
                 [](double v) { return static_cast<float>(v); });
}

void compensate_refit(const Backend& backend, const DenseFfnTensors& dense, const LayerActivations& activations,
                      const Tensor& masked, const std::vector<int32_t>& expert_of, double lambda, Communicator& comm,
                      CarvedLayer& layer) {
  const int64_t d = dense.down.dim(0);
  const TokenChunks& chunks = activations.chunks;
  // What is missing: r_t = W_d (h_t - m_t)
  Tensor missing(DType::f32, {masked.dim(0), d});
  backend.linear(difference(activations.h, masked), backend.prepare(dense.down, DType::f32), missing);

  std::vector<int32_t> kept;
  for (size_t i = 0; i < expert_of.size(); ++i) {
    if (expert_of[i] != kDroppedNeuron) kept.push_back(static_cast<int32_t>(i));
  }
  const Tensor active = kept.size() == expert_of.size() ? masked : gather_columns(masked, kept);
  const auto n = static_cast<int64_t>(kept.size());
  std::vector<double> square = gram(backend, active, active, chunks, comm);
  std::vector<double> cross = gram(backend, active, missing, chunks, comm);
  const std::vector<double> active_sum = column_sums(active, chunks, comm);
  const std::vector<double> missing_sum = column_sums(missing, chunks, comm);
  center_products(square, active_sum, active_sum, chunks.total_tokens);
  center_products(cross, active_sum, missing_sum, chunks.total_tokens);
  const std::vector<double> v = ridge_solve(std::move(square), cross, n, d, lambda);  // [n, d]

  layer.down = dense.down.clone();
  layer.compensation_bias = Tensor(DType::f32, {d});
  for (int64_t row = 0; row < d; ++row) {
    double bias = missing_sum[static_cast<size_t>(row)];
    for (int64_t i = 0; i < n; ++i) {
      const double change = v[static_cast<size_t>(i * d + row)];
      layer.down.row<float>(row)[kept[static_cast<size_t>(i)]] += static_cast<float>(change);
      bias -= change * active_sum[static_cast<size_t>(i)];
    }
    layer.compensation_bias.data<float>()[row] = static_cast<float>(bias / static_cast<double>(chunks.total_tokens));
  }
}

}  // namespace cmoe

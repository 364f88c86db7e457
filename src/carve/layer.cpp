#include "carve/layer.h"

#include <algorithm>
#include <limits>
#include <random>

#include "base/error.h"
#include "carve/clustering.h"
#include "carve/columns.h"
#include "carve/compensate.h"
#include "carve/fit_router.h"
#include "carve/partition.h"
#include "carve/refine_energy.h"
#include "carve/select_neurons.h"
#include "comm/kth_largest.h"

namespace cmoe {
namespace {

// [f]: the routed expert of each neuron, or kSharedNeuron, or kDroppedNeuron.
std::vector<int32_t> expert_of_neuron(const CarvedLayer& layer, int64_t neurons) {
  std::vector<int32_t> expert_of(static_cast<size_t>(neurons), kDroppedNeuron);
  for (int32_t i : layer.shared) expert_of[static_cast<size_t>(i)] = kSharedNeuron;
  for (size_t e = 0; e < layer.experts.size(); ++e) {
    for (int32_t i : layer.experts[e]) expert_of[static_cast<size_t>(i)] = static_cast<int32_t>(e);
  }
  return expert_of;
}

// The threshold at which the calibration tokens take A experts in the mean: the (T A)-th largest score. All or none is all or
// none of any token, whatever its scores.
float calibrated_threshold(const Backend& backend, const CarvedLayer& layer, const ExpertShape& shape,
                           const LayerActivations& activations, Communicator& comm) {
  if (shape.active == shape.routed()) return std::numeric_limits<float>::lowest();
  if (shape.active == 0) return std::numeric_limits<float>::max();
  const Tensor scores = router_scores(backend, prepare_router(backend, layer, shape), activations.input);
  return kth_largest(scores.span<float>(), activations.chunks.total_tokens * shape.active, comm);
}

Routing no_experts(int64_t tokens) {
  Routing routing;
  routing.expert_offset.assign(static_cast<size_t>(tokens) + 1, 0);
  return routing;
}

}  // namespace

CarvedLayer carve_layer(const Backend& backend, const Recipe& recipe, const ExpertShape& shape, const DenseFfnTensors& dense,
                        const LayerActivations& activations, const NeuronStatistics& statistics, int64_t layer, uint64_t seed,
                        Communicator& comm) {
  const int64_t f = dense.down.dim(1), m = f / shape.experts;
  CarvedLayer carved{.router_kind = recipe.router, .selector = recipe.selector, .down = dense.down};
  StageTimes times;

  // Shared expert: the S * m neurons of highest score (static baselines keep S + A shares and route nothing).
  const std::vector<double> score = score_neurons(recipe.score, statistics, dense.down, seed, layer);
  carved.shared = highest_neurons(score, (recipe.routed ? shape.shared : shape.shared + shape.active) * m);

  // Routed experts: balanced clusters of m of the remaining neurons, refined together with the shared ones.
  if (recipe.routed && shape.routed() > 0) {
    const Partitioned parts = partition_neurons(backend, recipe, remaining_neurons(f, carved.shared), shape.routed(), dense,
                                                activations, statistics, seed, layer, comm);
    NeuronPartition partition{.shared = carved.shared, .experts = parts.experts, .representatives = parts.representatives};
    carved.energy = refine_energy(backend, recipe, shape, dense, activations, statistics, comm, partition);
    carved.shared = partition.shared;
    carved.experts = partition.experts;
    times.lap("partition");
    if (recipe.router == RouterKind::linear) {
      const Tensor norms = expert_output_norms(backend, activations.h, dense.down, carved.experts);
      fit_linear_router(backend, activations.input, norms, recipe.router_lambda, activations.chunks, comm, carved);
    } else {
      build_analytical_router(dense, partition.representatives, carved);
    }
    if (recipe.selector == Selector::threshold) {
      carved.threshold = calibrated_threshold(backend, carved, shape, activations, comm);
    }
    times.lap("router");
  }

  if (recipe.compensation != Compensation::none) {
    const std::vector<int32_t> expert_of = expert_of_neuron(carved, f);
    const Routing routing = calibration_routing(backend, carved, shape, activations.input);
    if (recipe.compensation == Compensation::mean) {
      const Tensor masked = mask_activations(activations.h, expert_of, routing, static_cast<int64_t>(carved.experts.size()));
      compensate_mean(dense, activations, masked, expert_of, routing, comm, carved);
    } else {
      compensate_refit(backend, dense, activations, routing, expert_of, recipe.refit_lambda, comm, carved);
    }
    times.lap("compensation");
  }
  carved.stage_seconds = times.totals();
  return carved;
}

Routing calibration_routing(const Backend& backend, const CarvedLayer& layer, const ExpertShape& shape, const Tensor& input) {
  if (layer.experts.empty()) return no_experts(input.dim(0));
  const Router router = prepare_router(backend, layer, shape);
  return select_experts(router, router_scores(backend, router, input));
}

void add_carved_output(const Backend& backend, const CarvedLayer& layer, DType dtype, const LayerActivations& activations,
                       const Routing& routing, Tensor& x) {
  Weight shared;
  if (!layer.shared.empty()) shared = prepare_neurons(backend, layer.down, layer.shared, dtype);
  std::vector<Weight> experts;
  for (const std::vector<int32_t>& neurons : layer.experts)
    experts.push_back(prepare_neurons(backend, layer.down, neurons, dtype));
  constexpr int64_t kBlock = 1024;  // tokens whose activations stay in a cache from expert to expert
  for (int64_t begin = 0; begin < x.dim(0); begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, x.dim(0));
    const Tensor h = activations.h.rows(begin, end);
    Tensor output = x.rows(begin, end);
    if (!layer.shared.empty()) backend.linear(gather_columns(h, layer.shared), shared, output, /*accumulate=*/true);
    std::vector<std::vector<int32_t>> tokens_of(layer.experts.size());
    for (int64_t t = begin; t < end; ++t) {
      for (int32_t e : routing.experts(t)) tokens_of[static_cast<size_t>(e)].push_back(static_cast<int32_t>(t - begin));
    }
    for (size_t e = 0; e < experts.size(); ++e)
      add_neurons_output(backend, h, experts[e], layer.experts[e], tokens_of[e], /*column=*/0, output);
  }
  if (layer.compensation_bias.size() > 0) backend.add_bias(layer.compensation_bias, x);
  if (layer.expert_bias.size() == 0) return;
  for (int64_t t = 0; t < routing.tokens(); ++t) {
    for (int32_t e : routing.experts(t)) {
      const float* bias = layer.expert_bias.row<float>(e);
      float* row = x.row<float>(t);
      for (int64_t i = 0; i < x.dim(1); ++i) row[i] += bias[i];
    }
  }
}

}  // namespace cmoe

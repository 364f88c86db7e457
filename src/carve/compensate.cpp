#include "carve/compensate.h"

#include <algorithm>

#include "base/parallel.h"
#include "carve/columns.h"
#include "carve/least_squares.h"
#include "carve/normal_equations.h"
#include "carve/token_sums.h"

namespace cmoe {
namespace {

// Neurons that run together, and this rank's tokens that run them, or do not.
struct NeuronGroup {
  std::vector<int32_t> neurons, runs, misses;  // ascending
};

struct NeuronGroups {
  std::vector<NeuronGroup> routed;  // experts, then neurons that never run
  NeuronGroup shared;

  // Unknowns of the refit: experts, then the shared neurons, so that rows of the Gram matrix from an expert's diagonal on
  // need its own tokens alone.
  std::vector<const NeuronGroup*> in_order_of_unknowns() const {
    std::vector<const NeuronGroup*> order;
    for (size_t e = 0; e + 1 < routed.size(); ++e) order.push_back(&routed[e]);
    order.push_back(&shared);
    return order;
  }
  int64_t running() const {
    size_t count = 0;
    for (const NeuronGroup* group : in_order_of_unknowns()) count += group->neurons.size();
    return static_cast<int64_t>(count);
  }
};

NeuronGroups group_neurons(const std::vector<int32_t>& expert_of, const Routing& routing, int64_t experts) {
  NeuronGroups groups;
  groups.routed.resize(static_cast<size_t>(experts) + 1);
  for (size_t i = 0; i < expert_of.size(); ++i) {
    const int32_t e = expert_of[i];
    NeuronGroup& group = e == kSharedNeuron    ? groups.shared
                         : e == kDroppedNeuron ? groups.routed.back()
                                               : groups.routed[static_cast<size_t>(e)];
    group.neurons.push_back(static_cast<int32_t>(i));
  }
  for (int64_t t = 0; t < routing.tokens(); ++t) {
    const auto token = static_cast<int32_t>(t);
    for (int32_t e : routing.experts(t)) groups.routed[static_cast<size_t>(e)].runs.push_back(token);
    for (NeuronGroup& group : groups.routed) {
      if (group.runs.empty() || group.runs.back() != token) group.misses.push_back(token);
    }
    groups.shared.runs.push_back(token);
  }
  return groups;
}

// z [T, running + d] = the activations that run, in the order of the unknowns, 0 where a token does not run them; then zeros.
void write_running(const Tensor& h, const NeuronGroups& groups, Tensor& z) {
  parallel_for(z.dim(0), 64, [&](int64_t begin, int64_t end) {
    float* first = z.row<float>(begin);
    std::fill(first, first + (end - begin) * z.dim(1), 0.0f);
    int64_t column = 0;
    for (const NeuronGroup* group : groups.in_order_of_unknowns()) {
      const auto from = std::lower_bound(group->runs.begin(), group->runs.end(), static_cast<int32_t>(begin));
      const auto to = std::lower_bound(from, group->runs.end(), static_cast<int32_t>(end));
      for (auto t = from; t != to; ++t) {
        const float* source = h.row<float>(*t);
        float* target = z.row<float>(*t) + column;
        for (size_t i = 0; i < group->neurons.size(); ++i) target[i] = source[group->neurons[i]];
      }
      column += static_cast<int64_t>(group->neurons.size());
    }
  });
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
                      const Routing& routing, const std::vector<int32_t>& expert_of, double lambda, Communicator& comm,
                      CarvedLayer& layer) {
  const int64_t d = dense.down.dim(0);
  const NeuronGroups groups = group_neurons(expert_of, routing, static_cast<int64_t>(layer.experts.size()));
  // [m_t | r_t]: what runs, expert by expert and then the shared neurons, and what is missing.
  Tensor z(DType::f32, {activations.h.dim(0), groups.running() + d});
  write_running(activations.h, groups, z);
  for (const NeuronGroup& group : groups.routed) {
    const Weight down = prepare_neurons(backend, dense.down, group.neurons, DType::f32);
    add_neurons_output(backend, activations.h, down, group.neurons, group.misses, groups.running(), z);
  }

  std::vector<UnknownsOfTokens> unknowns;
  std::vector<int32_t> neuron_of;
  for (const NeuronGroup* group : groups.in_order_of_unknowns()) {
    const auto first = static_cast<int64_t>(neuron_of.size());
    neuron_of.insert(neuron_of.end(), group->neurons.begin(), group->neurons.end());
    unknowns.push_back({.first = first, .last = static_cast<int64_t>(neuron_of.size()), .tokens = group->runs});
  }
  const LinearFit fit =
      ridge_fit(backend, normal_equations(backend, z, unknowns, activations.chunks, comm), lambda, comm);  // [n, d]
  layer.down = dense.down.clone();
  layer.compensation_bias = Tensor(DType::f32, {d});
  parallel_for(d, 64, [&](int64_t begin, int64_t end) {
    for (size_t i = 0; i < neuron_of.size(); ++i) {
      const double* change = fit.weight.data() + i * static_cast<size_t>(d);
      for (int64_t row = begin; row < end; ++row) layer.down.row<float>(row)[neuron_of[i]] += static_cast<float>(change[row]);
    }
    for (int64_t row = begin; row < end; ++row)
      layer.compensation_bias.data<float>()[row] = static_cast<float>(fit.intercept[static_cast<size_t>(row)]);
  });
}

}  // namespace cmoe

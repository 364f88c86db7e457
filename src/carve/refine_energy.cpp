#include "carve/refine_energy.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "base/parallel.h"
#include "carve/balanced_assignment.h"
#include "carve/columns.h"
#include "carve/reproducible_sum.h"
#include "comm/kth_largest.h"

namespace cmoe {
namespace {

// v_t e[t,i] [T, f], and 1 / v_t [T], by which E follows from the weighted sums.
struct WeightedEnergies {
  Tensor energy;
  std::vector<float> root;

  WeightedEnergies(const Tensor& h, const Tensor& down) : energy(DType::f32, h.shape()), root(static_cast<size_t>(h.dim(0))) {
    const std::vector<double> norms = column_squared_norms(down);
    parallel_for(h.dim(0), 64, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const float* from = h.row<float>(t);
        float* to = energy.row<float>(t);
        double sum = 0;
        for (size_t i = 0; i < norms.size(); ++i) {
          to[i] = from[i] * from[i] * static_cast<float>(norms[i]);
          sum += to[i];
        }
        root[static_cast<size_t>(t)] = static_cast<float>(std::sqrt(sum));
        const float weight = sum > 0 ? 1 / root[static_cast<size_t>(t)] : 0.0f;
        for (size_t i = 0; i < norms.size(); ++i) to[i] *= weight;
      }
    });
  }
};

// Sums over the neurons of each expert: [T, R].
Tensor sum_experts(const Backend& backend, const Tensor& energy, const std::vector<std::vector<int32_t>>& experts) {
  Tensor member = Tensor::zeros(DType::f32, {static_cast<int64_t>(experts.size()), energy.dim(1)});
  for (size_t c = 0; c < experts.size(); ++c) {
    for (const int32_t i : experts[c]) member.row<float>(static_cast<int64_t>(c))[i] = 1;
  }
  Tensor sums(DType::f32, {energy.dim(0), member.dim(0)});
  backend.linear(energy, backend.prepare(member, DType::f32), sums);
  return sums;
}

// S as ones and zeros [T, R + 1]; every token runs the shared expert, the last column.
Tensor taken_pairs(const Recipe& recipe, const ExpertShape& shape, Tensor sums, std::span<const float> root,
                   int64_t total_tokens, Communicator& comm) {
  const int64_t tokens = sums.dim(0), routed = sums.dim(1);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t c = 0; c < routed; ++c) sums.row<float>(t)[c] *= root[static_cast<size_t>(t)];
  }
  float least = 0;
  if (recipe.selector == Selector::threshold) least = kth_largest(sums.span<float>(), total_tokens * shape.active, comm);
  Tensor taken = Tensor::zeros(DType::f32, {tokens, routed + 1});
  std::vector<float> sorted(static_cast<size_t>(routed));
  for (int64_t t = 0; t < tokens; ++t) {
    const float* sum = sums.row<float>(t);
    if (recipe.selector == Selector::topk) {
      std::copy_n(sum, routed, sorted.begin());
      std::nth_element(sorted.begin(), sorted.begin() + (shape.active - 1), sorted.end(), std::greater<>());
      least = sorted[static_cast<size_t>(shape.active - 1)];
    }
    for (int64_t c = 0; c < routed; ++c) taken.row<float>(t)[c] = sum[c] >= least ? 1.0f : 0.0f;
    taken.row<float>(t)[routed] = 1;
  }
  return taken;
}

// G [R + 1, f] over the tokens of all ranks.
std::vector<double> gains(const Backend& backend, const Tensor& taken, const Tensor& energy, const TokenChunks& chunks,
                          Communicator& comm) {
  std::vector<std::vector<double>> of_chunk;
  Tensor gain(DType::f32, {taken.dim(1), energy.dim(1)});
  for (int64_t c = 0; c < chunks.local_chunks(); ++c) {
    const auto piece = [&](const Tensor& x) {
      return x.rows(chunks.begin[static_cast<size_t>(c)], chunks.begin[static_cast<size_t>(c) + 1]);
    };
    backend.multiply_transposed(piece(taken), piece(energy), gain);
    of_chunk.emplace_back(gain.span<float>().begin(), gain.span<float>().end());
  }
  return sum_reproducibly(of_chunk, gain.size(), comm, "refinement by energy: gains");
}

}  // namespace

std::vector<double> refine_energy(const Backend& backend, const Recipe& recipe, const ExpertShape& shape,
                                  const DenseFfnTensors& dense, const LayerActivations& activations,
                                  const NeuronStatistics& statistics, Communicator& comm, NeuronPartition& partition) {
  const auto routed = static_cast<int64_t>(partition.experts.size());
  std::vector<double> captured;
  // Where every token takes all experts or none, it does not matter which expert a neuron is in.
  if (recipe.energy_rounds == 0 || shape.active == 0 || shape.active >= routed) return captured;
  const WeightedEnergies weighted(activations.h, dense.down);
  const int64_t f = weighted.energy.dim(1), groups = routed + 1;
  std::vector<int64_t> capacity;
  std::vector<int32_t> group(static_cast<size_t>(f), static_cast<int32_t>(routed));
  for (size_t c = 0; c < partition.experts.size(); ++c) {
    capacity.push_back(static_cast<int64_t>(partition.experts[c].size()));
    for (const int32_t i : partition.experts[c]) group[static_cast<size_t>(i)] = static_cast<int32_t>(c);
  }
  capacity.push_back(static_cast<int64_t>(partition.shared.size()));

  for (int64_t round = 0; round < recipe.energy_rounds; ++round) {
    const Tensor taken = taken_pairs(recipe, shape, sum_experts(backend, weighted.energy, partition.experts), weighted.root,
                                     activations.chunks.total_tokens, comm);
    const std::vector<double> gain = gains(backend, taken, weighted.energy, activations.chunks, comm);
    const double total = std::accumulate(gain.begin() + routed * f, gain.end(), 0.0);
    if (total <= 0) return captured;
    double runs = 0;
    std::vector<int64_t> cost(static_cast<size_t>(f * groups));
    for (int64_t i = 0; i < f; ++i) {
      for (int64_t c = 0; c < groups; ++c) {
        const double value = gain[static_cast<size_t>(c * f + i)];
        cost[static_cast<size_t>(i * groups + c)] = -std::llround(value * (0x1p40 / total));
        if (group[static_cast<size_t>(i)] == c) runs += value;
      }
    }
    captured.push_back(runs / total);
    const std::vector<int32_t> moved = assign_balanced(cost, f, groups, capacity).label;
    if (moved == group) break;
    group = moved;
    partition.shared.clear();
    for (std::vector<int32_t>& members : partition.experts) members.clear();
    for (int32_t i = 0; i < f; ++i) {
      const int32_t c = group[static_cast<size_t>(i)];
      (c == routed ? partition.shared : partition.experts[static_cast<size_t>(c)]).push_back(i);
    }
    const auto weight = [&](size_t c, int32_t i) {
      return recipe.representative == Representative::highest_rate
                 ? static_cast<double>(statistics.marked[static_cast<size_t>(i)])
                 : gain[c * static_cast<size_t>(f) + static_cast<size_t>(i)];
    };
    for (size_t c = 0; c < partition.experts.size(); ++c) {
      partition.representatives[c] = *std::max_element(partition.experts[c].begin(), partition.experts[c].end(),
                                                       [&](int32_t a, int32_t b) { return weight(c, a) < weight(c, b); });
    }
  }
  return captured;
}

}  // namespace cmoe

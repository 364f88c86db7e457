#include "carve/partition.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "base/parallel.h"
#include "carve/clustering.h"
#include "carve/columns.h"
#include "carve/markers.h"
#include "carve/select_neurons.h"

namespace cmoe {
namespace {

std::vector<int64_t> select(const std::vector<int64_t>& values, const std::vector<int32_t>& index) {
  std::vector<int64_t> selected;
  for (int32_t i : index) selected.push_back(values[static_cast<size_t>(i)]);
  return selected;
}

Clusters by_markers(const Recipe& recipe, const std::vector<int32_t>& candidates, int64_t clusters,
                    const LayerActivations& activations, const NeuronStatistics& statistics, Communicator& comm) {
  const auto neurons = static_cast<int64_t>(statistics.marked.size());
  const SparseBits bits = select_marks(activations.markers, activations.k_act, neurons, candidates);
  const std::vector<int32_t> seeds =
      highest_rate_seeds(std::span<const int64_t>(select(statistics.marked, candidates)), clusters);
  const MarkerDistance distance = recipe.partition == Partition::markers_l1           ? MarkerDistance::l1
                                  : recipe.partition == Partition::markers_squared_l2 ? MarkerDistance::squared_l2
                                                                                      : MarkerDistance::l2;
  return cluster_markers(bits, seeds, distance, recipe.iterations, comm);
}

// Columns |h_i| |w_d,i|: how much neuron i moves the residual stream, token by token. Seeds are those that move it most.
Clusters by_cosine(const Backend& backend, const Recipe& recipe, const std::vector<int32_t>& candidates, int64_t clusters,
                   const DenseFfnTensors& dense, const LayerActivations& activations, const NeuronStatistics& statistics,
                   Communicator& comm) {
  const std::vector<double> norms = column_squared_norms(dense.down);
  std::vector<float> length;
  std::vector<double> mass;
  for (int32_t i : candidates) {
    length.push_back(static_cast<float>(std::sqrt(norms[static_cast<size_t>(i)])));
    mass.push_back(statistics.second_moment[static_cast<size_t>(i)] * norms[static_cast<size_t>(i)]);
  }
  Tensor columns = gather_columns(activations.h, candidates);
  parallel_for(columns.dim(0), 64, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* row = columns.row<float>(t);
      for (size_t i = 0; i < length.size(); ++i) row[i] = std::abs(row[i]) * length[i];
    }
  });
  const std::vector<int32_t> seeds = highest_rate_seeds(std::span<const double>(mass), clusters);
  return cluster_cosine(backend, columns, activations.chunks, seeds, recipe.iterations, comm);
}

// Blocks of m neurons in the order of their index, or of a shuffle.
Clusters by_blocks(const Recipe& recipe, int64_t candidates, int64_t clusters, uint64_t seed, int64_t layer) {
  std::vector<int32_t> order(static_cast<size_t>(candidates));
  std::iota(order.begin(), order.end(), 0);
  if (recipe.partition == Partition::random) {
    std::mt19937_64 random(seed * 1000003 + static_cast<uint64_t>(layer) + 500000);
    for (size_t i = order.size(); i > 1; --i)
      std::swap(order[i - 1], order[random() % i]);  // the same on every standard library
  }
  Clusters result{.clusters = clusters};
  result.label.resize(order.size());
  result.distance.assign(order.size(), 0);
  const int64_t m = candidates / clusters;
  for (size_t i = 0; i < order.size(); ++i)
    result.label[static_cast<size_t>(order[i])] = static_cast<int32_t>(static_cast<int64_t>(i) / m);
  return result;
}

}  // namespace

Partitioned partition_neurons(const Backend& backend, const Recipe& recipe, const std::vector<int32_t>& candidates,
                              int64_t clusters, const DenseFfnTensors& dense, const LayerActivations& activations,
                              const NeuronStatistics& statistics, uint64_t seed, int64_t layer, Communicator& comm) {
  Clusters found;
  switch (recipe.partition) {
    case Partition::markers_l1:
    case Partition::markers_squared_l2:
    case Partition::markers_l2:
      found = by_markers(recipe, candidates, clusters, activations, statistics, comm);
      break;
    case Partition::cosine:
      found = by_cosine(backend, recipe, candidates, clusters, dense, activations, statistics, comm);
      break;
    default:
      found = by_blocks(recipe, static_cast<int64_t>(candidates.size()), clusters, seed, layer);
  }
  Partitioned result;
  result.experts.resize(static_cast<size_t>(clusters));
  for (size_t i = 0; i < candidates.size(); ++i) result.experts[static_cast<size_t>(found.label[i])].push_back(candidates[i]);
  const bool by_rate = recipe.representative == Representative::highest_rate;
  for (int32_t item : by_rate ? highest_rate_items(found, select(statistics.marked, candidates)) : nearest_items(found)) {
    result.representatives.push_back(candidates[static_cast<size_t>(item)]);
  }
  return result;
}

}  // namespace cmoe

#pragma once

#include <cstdint>
#include <vector>

#include "carve/layer.h"
#include "carve/recipe.h"

namespace cmoe {

struct Partitioned {
  std::vector<std::vector<int32_t>> experts;  ///< R lists of m neurons, ascending
  std::vector<int32_t> representatives;       ///< [R] one neuron of each expert (CMoE v3, step "representative neuron")
};

/// Divides the `candidates` (ascending neuron indices) into `clusters` experts of equal size. Collective.
Partitioned partition_neurons(const Backend& backend, const Recipe& recipe, const std::vector<int32_t>& candidates,
                              int64_t clusters, const DenseFfnTensors& dense, const LayerActivations& activations,
                              const NeuronStatistics& statistics, uint64_t seed, int64_t layer, Communicator& comm);

}  // namespace cmoe

#pragma once

#include <cstdint>
#include <vector>

#include "carve/layer.h"
#include "carve/recipe.h"

namespace cmoe {

/// Importance of every neuron, [f]; higher is kept. `down` is W_d [d, f].
std::vector<double> score_neurons(Score score, const NeuronStatistics& statistics, const Tensor& down, uint64_t seed,
                                  int64_t layer);

/// The `count` neurons with the highest score, ascending; ties to the smaller index. Source: CMoE v3, step "shared experts".
std::vector<int32_t> highest_neurons(const std::vector<double>& score, int64_t count);

/// All of [0, neurons) that are not in `taken` (ascending), ascending.
std::vector<int32_t> remaining_neurons(int64_t neurons, const std::vector<int32_t>& taken);

}  // namespace cmoe

#pragma once

#include <span>
#include <vector>

#include "model/checkpoint.h"
#include "moe/placement.h"
#include "moe/wire_model.h"

namespace cmoe {

enum class PlacementKind { contiguous, balanced };

/// Where a carved model's routed experts go on `ranks` ranks, layer by layer. Balanced: by the loads of its calibration text.
/// @param redundant_experts  copies of hot experts, per layer, beyond the first; balanced placement only
/// @throws Error when the model is dense, or carries no loads and needs them.
std::vector<ExpertPlacement> place_experts(const Checkpoint& checkpoint, PlacementKind kind, int ranks, int redundant_experts);

/// What one rank will hold, from the headers alone.
struct RankPlan {
  int64_t experts = 0;       ///< copies of routed experts, over all layers
  int64_t weight_bytes = 0;  ///< Transformer::weight_bytes() after loading
  int64_t read_bytes = 0;    ///< of the model's files
};
RankPlan plan_rank(const Checkpoint& checkpoint, DType dtype, std::span<const ExpertPlacement> placement, int rank);

/// [num_routed_experts + 1] probability that a token takes k routed experts, by the config: exactly num_experts_per_tok with
/// topk; with a threshold, each expert alone with a chance that gives that mean.
std::vector<double> experts_per_token(const MoeConfig& moe);

/// Bytes that all ranks send for one token in all layers, expected before any routing is known, by the cheaper transport.
/// Without the exchange of sizes, whose cost is per step.
double wire_bytes_per_token(const ModelConfig& config, std::span<const ExpertPlacement> placement, DType wire);

/// Bytes of one rank's activations in a step of `rows` tokens: the tensors alive together in a layer. Routed rows are counted
/// as if every token took all experts and all of them lay here.
int64_t activation_bytes(const ModelConfig& config, int64_t rows);

}  // namespace cmoe

#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "analysis/measures.h"
#include "comm/communicator.h"
#include "model/transformer.h"

namespace cmoe {

/// What all experts of one layer give for the layer's own inputs: every routed expert runs for every token, chosen or not, and
/// the shared expert, where there is one, is the last of `experts`. Ranks count from 0, the largest. Source: "A Closer Look
/// into MoE" (arXiv:2406.18219), sections 4.2 and 5; what a carved model adds: how often the router takes the experts with the
/// largest outputs, which is what CMoE's analytical router is built for.
struct ExpertOutputs {
  int64_t tokens = 0, routed = 0, experts = 0;
  SquareMatrix cosine;       ///< [experts, experts] mean cosine of two experts' outputs for the same token
  SquareMatrix angular;      ///< [experts, experts] mean 1 - arccos(cosine) / pi
  double chosen_cosine = 0;  ///< mean cosine of pairs of routed experts that the token takes both
  double other_cosine = 0;   ///< of all other pairs of routed experts
  SquareMatrix rank_table;   ///< [R, R] tokens whose expert of norm rank i has score rank j
  double spearman = 0;       ///< mean over tokens of the rank correlation of norms and scores
  /// Of tokens that take more than none and less than all routed experts, k of R: mean share of the k with the largest outputs
  /// that are taken, and what a blind choice would reach (k / R); share of tokens that take exactly those, and blind (1 / C(R,
  /// k)).
  double overlap = 0, overlap_by_chance = 0, exact = 0, exact_by_chance = 0;
  /// Share of the routed experts' squared output norms that the taken experts hold, and the most that as many could hold;
  /// means.
  double energy = 0, energy_best = 0;
  std::vector<double> norm;                ///< [experts] mean L2 norm of the output
  std::vector<double> active_share;        ///< [experts] share of |silu(W_gate x)| above 0.001
  std::vector<int64_t> tokens_per_expert;  ///< [R]
};

/// The experts of every layer that each token of a text takes: [layers][tokens].
using RoutingMap = std::vector<std::vector<std::vector<int32_t>>>;

struct OutputAnalysis {
  std::vector<ExpertOutputs> layers;
  RoutingMap prompt;  ///< of the prompt, on all ranks
};

/// Runs windows of text layer by layer, each layer's FFN read when its turn comes. Windows are divided over the ranks; in f32
/// the result is the same to the bit for any number of ranks. Collective: all ranks pass the same windows and get the same
/// result.
/// @param prompt  one more text, whose routing is kept; may be empty
/// @param on_layer  called after each layer
OutputAnalysis analyze_expert_outputs(const Checkpoint& checkpoint, std::shared_ptr<const Backend> backend, DType dtype,
                                      std::span<const std::span<const int32_t>> windows, std::span<const int32_t> prompt,
                                      Communicator& comm, const std::function<void()>& on_layer = {});

}  // namespace cmoe

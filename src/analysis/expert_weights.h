#pragma once

#include <array>
#include <optional>
#include <vector>

#include "analysis/measures.h"
#include "backend/backend.h"
#include "model/checkpoint.h"

namespace cmoe {

/// How alike the experts of one layer are in one of their matrices. A neuron is a row of gate and up and a column of down;
/// experts are the R routed ones and, where there is one, the shared expert, last. Source: "A Closer Look into MoE"
/// (arXiv:2406.18219), section 4.1. Carved experts are slices of one FFN in no order, so that what compares neurons by their
/// place (flat) is noise there, and averages and matches tell.
struct MatrixSimilarity {
  SquareMatrix flat;                              ///< [R, R] cosines of the whole matrices
  SquareMatrix average;                           ///< [experts, experts] cosines of the neurons' means
  std::vector<std::array<double, 2>> components;  ///< [experts] first principal components of the means
  /// Means over pairs of routed experts, where neurons were matched one to one for the largest sum of cosines.
  struct Matched {
    double flat = 0;         ///< cosine of the whole matrices after the second is put into the match's order
    double tau = 0;          ///< Kendall's tau of the match against the order as stored
    double best_cosine = 0;  ///< mean over neurons of the largest cosine with any neuron of the other
  };
  std::optional<Matched> matched;
};

struct ExpertWeights {
  int64_t routed = 0;
  bool shared = false;
  std::array<MatrixSimilarity, 3> matrices;  ///< gate, up, down
  /// R^2 of the routers' similarity (cosines of its rows) against `average`, over pairs of routed experts. A router of two
  /// matrices has two rows. [router matrices][gate, up, down]
  std::vector<std::array<double, 3>> router_r_squared;
};

/// Measures one layer of a carved model. @param match  match neurons, too: n^3 work for experts of n neurons
/// @throws Error for a layer without routed experts.
ExpertWeights analyze_expert_weights(const Checkpoint& checkpoint, const Backend& backend, int64_t layer, bool match);

}  // namespace cmoe

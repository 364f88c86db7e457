#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "carve/layer.h"
#include "carve/recipe.h"

namespace cmoe {

/// A division of a layer's neurons: the shared ones, and R experts of equal size. Lists are ascending.
struct NeuronPartition {
  std::vector<int32_t> shared;
  std::vector<std::vector<int32_t>> experts;
  std::vector<int32_t> representatives;  ///< [R] one neuron of each expert
};

/// Moves neurons between the experts, and between them and the shared expert, so that what runs holds more of the layer's
/// energy, where neuron i has at token t
///   e[t,i] = (h_i(t) |w_d,i|)^2, what it adds to the squared length of the output (cross terms apart).
/// A round takes
///   E[t,c] = sum of e[t,i] over the neurons i of expert c
///   S      = the pairs (t, c) that a router who knows E takes: the A largest of each token, or the T A largest of all
///   (threshold) v_t    = 1 / sqrt(sum_i e[t,i]), so that a few tokens with huge activations do not decide G[i,c] = sum of v_t
///   e[t,i] over the tokens t with (t, c) in S;   G[i,shared] = sum of v_t e[t,i] over all t
/// and assigns the neurons, sizes kept, for the largest sum of G[i, group of i], exactly (carve/balanced_assignment.h). With S
/// fixed that sum is the energy that runs; with top-k a new S only adds to it, so it rises from round to round. Ends when no
/// neuron moves.
///
/// An expert whose neurons changed is represented by the one that most tokens mark (highest_rate), or by the one with the
/// largest G[i,c] (nearest: there is no cluster centre left to be near to).
///
/// Collective; the same to the bit for any number of ranks.
/// @return  [rounds] share of the weighted energy that ran in the partition each round began with
std::vector<double> refine_energy(const Backend& backend, const Recipe& recipe, const ExpertShape& shape,
                                  const DenseFfnTensors& dense, const LayerActivations& activations,
                                  const NeuronStatistics& statistics, Communicator& comm, NeuronPartition& partition);

}  // namespace cmoe

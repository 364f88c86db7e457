#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "carve/recipe.h"
#include "carve/stage_times.h"
#include "carve/token_chunks.h"
#include "comm/communicator.h"
#include "model/transformer.h"
#include "moe/router.h"

namespace cmoe {

/// What carving a layer looks at: this rank's calibration tokens. n = f neurons.
struct LayerActivations {
  Tensor input;                  ///< x [T, d]: the FFN's input after the norm
  Tensor h;                      ///< [T, f] = silu(x Wg^T) * (x Wu^T)
  std::vector<int32_t> markers;  ///< [T, k_act] neuron indices, ascending per token; of the recipe's marker kind
  int64_t k_act = 0;
  TokenChunks chunks;
};

/// Statistics of every neuron over the tokens of all ranks.
struct NeuronStatistics {
  int64_t tokens = 0;
  std::vector<int64_t> marked;        ///< [f] tokens that mark it
  std::vector<double> mean;           ///< [f] E[h]
  std::vector<double> second_moment;  ///< [f] E[h^2]
  std::vector<double> mean_abs;       ///< [f] E|h|
};

/// One carved FFN in host memory, as it is written to a checkpoint. Neuron lists are ascending indices into the dense FFN.
struct CarvedLayer {
  std::vector<int32_t> shared;                ///< S * m neurons
  std::vector<std::vector<int32_t>> experts;  ///< R lists of m neurons
  RouterKind router_kind = RouterKind::linear;
  Selector selector = Selector::topk;
  Tensor router_weight, router_bias;  ///< linear: [R, d], [R]
  Tensor router_gate, router_up;      ///< analytical, authors: [R, d]
  float threshold = 0;
  Tensor down;                 ///< [d, f] f32: the down-projection to slice from (refit, or the dense one)
  Tensor compensation_bias;    ///< [d], or undefined
  Tensor expert_bias;          ///< [R, d], or undefined
  std::vector<double> energy;  ///< [rounds] of refine_energy(): the share that ran in the partition each round began with
  StageSeconds stage_seconds;  ///< time of this rank in each stage of the carve
};

/// Carves one layer. Collective; the result is the same on all ranks, and the same to the bit for any number of ranks.
/// @param dense  the layer's FFN weights, f32 [f, d], [f, d], [d, f].
/// @param layer  number of the layer, for messages and the random baseline.
CarvedLayer carve_layer(const Backend& backend, const Recipe& recipe, const ExpertShape& shape, const DenseFfnTensors& dense,
                        const LayerActivations& activations, const NeuronStatistics& statistics, int64_t layer, uint64_t seed,
                        Communicator& comm);

/// The routing of this rank's calibration tokens.
Routing calibration_routing(const Backend& backend, const CarvedLayer& layer, const ExpertShape& shape, const Tensor& input);

/// x += the carved layer's output on this rank's calibration tokens, from the activations at hand; x [T, d]. An expert works
/// on the tokens that take it, its weights as `dtype`.
void add_carved_output(const Backend& backend, const CarvedLayer& layer, DType dtype, const LayerActivations& activations,
                       const Routing& routing, Tensor& x);

}  // namespace cmoe

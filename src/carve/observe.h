#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "carve/layer.h"
#include "carve/recipe.h"
#include "carve/token_chunks.h"

namespace cmoe {

/// The prepared gate, up and down of one dense FFN, and what makes its gate and up rows unit vectors.
struct ObservedFfn {
  ObservedFfn(const Backend& backend, const DenseFfnTensors& dense, DType dtype);

  GatedFfn ffn;
  std::vector<float> gate_factor, up_factor;  ///< [f] 1 / |g_i|, 1 / |u_i|
};

/// FFN activations of this rank's tokens.
struct FfnActivations {
  Tensor h;                                 ///< [T, f] = silu(x Wg^T) * (x Wu^T)
  std::vector<int32_t> raw_markers;         ///< [T, k_act] of |h|, or empty
  std::vector<int32_t> normalized_markers;  ///< [T, k_act] of |silu(x^.g^) (x^.u^)| with vectors of unit length, or empty
};

/// Computes h and the markers asked for. The normalised activation (authors' code, `construct_moe`) is an elementwise rescaling
/// of the same products: x^.g^_i = x.g_i / (|x| |g_i|).
FfnActivations observe_ffn(const Backend& backend, const ObservedFfn& ffn, const Tensor& input, int64_t k_act,
                           std::span<const Marker> markers);

/// y += h W_d^T.
void add_down(const Backend& backend, const ObservedFfn& ffn, const Tensor& h, Tensor& y);

/// Tokens that mark each neuron, of all ranks. Collective.
std::vector<int64_t> count_markers(std::span<const int32_t> markers, int64_t neurons, Communicator& comm);

/// Mean, second moment and mean absolute of h over the tokens of all ranks; `marked` is left to the caller. Collective.
NeuronStatistics neuron_statistics(const Tensor& h, const TokenChunks& chunks, Communicator& comm);

}  // namespace cmoe

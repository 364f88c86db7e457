#pragma once

#include <span>
#include <vector>

#include "backend/backend.h"
#include "carve/layer.h"

namespace cmoe {

/// |E_j(x_t)|, the length of every routed expert's output on this rank's tokens: [T, R] f32.
/// By the quadratic form h_j^T (W_d,j^T W_d,j) h_j, or through the output itself where that is cheaper.
Tensor expert_output_norms(const Backend& backend, const Tensor& h, const Tensor& down,
                           const std::vector<std::vector<int32_t>>& experts);

/// Linear router: s = W x + b, by ridge regression from the FFN input to each expert's output norm, about the means.
/// @param lambda  ridge in units of the mean diagonal of the centred Gram matrix of x.
/// Collective; the same on all ranks.
void fit_linear_router(const Backend& backend, const Tensor& input, const Tensor& norms, double lambda,
                       const TokenChunks& chunks, Communicator& comm, CarvedLayer& layer);

/// Analytical router: gate and up rows of each expert's representative neuron; rows of unit length for RouterKind::authors.
/// Source: CMoE v3, section 3.3; `Router` in the authors' code.
void build_analytical_router(const DenseFfnTensors& dense, std::span<const int32_t> representatives, CarvedLayer& layer);

/// The prepared router of a carved layer, as inference uses it.
Router prepare_router(const Backend& backend, const CarvedLayer& layer, const ExpertShape& shape);

}  // namespace cmoe

#pragma once

#include "backend/backend.h"
#include "carve/layer.h"

namespace cmoe {

/// Adds what a dropped expert would have contributed on average while it was dropped: compensation.bias = sum_j c_j and
/// expert_bias_j = -c_j, with c_j = W_d,j E[h_j | expert j dropped]. With fixed (statically dropped) neurons this is FLAP's
/// bias.
/// @param masked  activations of the experts that ran (mask_activations). Collective.
void compensate_mean(const DenseFfnTensors& dense, const LayerActivations& activations, const Tensor& masked,
                     const std::vector<int32_t>& expert_of, const Routing& routing, Communicator& comm, CarvedLayer& layer);

/// Refits the down-projection W_d and a bias c to the dense output by ridge least squares:
///   min over V, c of  sum_t | W_d (h_t - m_t) - V m_t - c |^2 + lambda mean(diag) |V|^2,   W_d <- W_d + V,
/// with m_t the activations of the experts that token t takes. Sums go over the tokens that run an expert, or miss it, alone.
/// Collective.
void compensate_refit(const Backend& backend, const DenseFfnTensors& dense, const LayerActivations& activations,
                      const Routing& routing, const std::vector<int32_t>& expert_of, double lambda, Communicator& comm,
                      CarvedLayer& layer);

}  // namespace cmoe

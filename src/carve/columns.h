#pragma once

#include <span>

#include "backend/backend.h"
#include "moe/routing.h"

namespace cmoe {

/// Columns `index` of a [T, n] f32 matrix: [T, index.size()].
Tensor gather_columns(const Tensor& matrix, std::span<const int32_t> index);

/// Rows `index` of a [n, d] f32 matrix: [index.size(), d].
Tensor gather_matrix_rows(const Tensor& matrix, std::span<const int32_t> index);

/// W_d [d, f] f32 of some neurons alone, packed for add_neurons_output(). @param dtype  that multiplies: f32 or bf16.
Weight prepare_neurons(const Backend& backend, const Tensor& down, std::span<const int32_t> neurons, DType dtype);

/// y[t, column ... column + d] += W_d h_t over `neurons` alone, for the rows t in `tokens`, which are ascending.
/// @param h  [T, f] activations. @param down  prepare_neurons(). @param y  [T, >= column + d].
void add_neurons_output(const Backend& backend, const Tensor& h, const Weight& down, std::span<const int32_t> neurons,
                        std::span<const int32_t> tokens, int64_t column, Tensor& y);

/// Squared length of every column of W [d, f], f64: |w_d,i|^2 of a down-projection.
std::vector<double> column_squared_norms(const Tensor& weight);

/// expert_of[i] of a neuron that every token runs, and of one that none does.
constexpr int32_t kSharedNeuron = -1;
constexpr int32_t kDroppedNeuron = -2;

/// h [T, f] with the neurons of experts that a token does not take set to zero. `expert_of` [f]: the neuron's routed expert, or
/// kSharedNeuron, or kDroppedNeuron.
Tensor mask_activations(const Tensor& h, std::span<const int32_t> expert_of, const Routing& routing, int64_t experts);

}  // namespace cmoe

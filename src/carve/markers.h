#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tensor/tensor.h"

namespace cmoe {

/// The k_act neurons of largest |h| of every token, by index, ascending. Ties go to the smaller index; infinities rank as
/// numbers.
///
/// @param h     [tokens, neurons] activations.
/// @param out   [tokens, k_act] neuron indices.
/// @throws Error  unless 1 <= k_act <= neurons; on a NaN, naming the token (token 0 is `first_token` in the message) and
/// neuron. Source: ATopK of CMoE (arXiv:2502.04416v3), A[t,i] = 1 iff |H[t,i]| is in TopK(|H[t,:]|, K_a).
void mark_top_k(const float* h, int64_t tokens, int64_t neurons, int64_t k_act, int32_t* out, int64_t first_token = 0);

/// Each row divided by max(its L2 norm, 1e-12), f32; `rows` is [n, d] f32, f16 or bf16. A row of zeros stays zero.
///
/// The authors' code takes its markers from silu(x^ . gate^_i) * (x^ . up^_i), with the FFN input x and the rows of the gate
/// and up projections all normalised so, instead of the paper's h: prepare the normalised weights once and run the usual linear
/// and swiglu on the normalised input.
Tensor normalize_rows(const Tensor& rows);

/// How many tokens mark each neuron: [neurons]. @param marks any number of neuron indices. Sums over ranks by addition.
std::vector<int64_t> count_marks(std::span<const int32_t> marks, int64_t neurons);

/// A sparse matrix of bits, by rows: row r holds the columns column[row_begin[r]] ... column[row_begin[r + 1] - 1], ascending.
struct SparseBits {
  int64_t rows = 0, columns = 0;
  std::vector<int64_t> row_begin;  ///< [rows + 1]
  std::vector<int32_t> column;

  std::span<const int32_t> row(int64_t r) const {
    return std::span(column).subspan(static_cast<size_t>(row_begin[r]), static_cast<size_t>(row_begin[r + 1] - row_begin[r]));
  }
};

/// The markers of some neurons: [tokens, candidates] bits whose column c is neuron candidates[c].
///
/// @param marks       [tokens, k_act] neuron indices, ascending in each row.
/// @param candidates  distinct neurons, ascending, each in [0, neurons).
/// @throws Error      on an index outside [0, neurons), or candidates that are not ascending.
SparseBits select_marks(std::span<const int32_t> marks, int64_t k_act, int64_t neurons, std::span<const int32_t> candidates);

/// The same bits by columns: row i of the result lists the rows of `bits` that hold column i (the tokens that mark neuron i).
SparseBits transpose(const SparseBits& bits);

}  // namespace cmoe

#pragma once

#include <span>
#include <vector>

#include "backend/backend.h"
#include "carve/token_chunks.h"
#include "comm/communicator.h"

namespace cmoe {

/// A linear least-squares problem: columns [0, n) of z explain columns [n, n + m), both about their means.
struct NormalEquations {
  int64_t unknowns = 0, right_sides = 0;  ///< n, m
  /// [n, n + m] f64 row-major: sum over t of (z_ti - mean_i) (z_tj - mean_j), for j >= i; the rest is undefined.
  std::vector<double> products;
  std::vector<double> mean;  ///< [n + m]
};

/// Unknowns [first, last) are zero on every token but `tokens` (rows of z on this rank, ascending).
struct UnknownsOfTokens {
  int64_t first, last;
  std::vector<int32_t> tokens;
};

/// Sums over the tokens of all ranks, the same to the bit for any number of ranks: pieces are summed in f32 by the backend,
/// pieces together exactly (carve/reproducible_sum.h). Collective.
/// @param z       [T, n + m] f32 of this rank.
/// @param groups  together the n unknowns in their order, the same ranges on all ranks.
/// @throws Error  on a value that is not finite.
NormalEquations normal_equations(const Backend& backend, const Tensor& z, std::span<const UnknownsOfTokens> groups,
                                 const TokenChunks& chunks, Communicator& comm);

/// Every unknown on every token.
NormalEquations normal_equations(const Backend& backend, const Tensor& z, int64_t unknowns, const TokenChunks& chunks,
                                 Communicator& comm);

}  // namespace cmoe

#pragma once

#include <functional>
#include <span>
#include <vector>

#include "carve/token_chunks.h"
#include "comm/communicator.h"
#include "tensor/tensor.h"

namespace cmoe {

/// Sums over the tokens of all ranks, the same to the bit for any number of ranks (carve/reproducible_sum.h). Collective.

/// sum over tokens of terms(row) for each of `size` elements. `terms(begin, end, out)` adds rows [begin, end) of this rank into
/// out [size].
std::vector<double> sum_over_tokens(int64_t size, const TokenChunks& chunks, Communicator& comm,
                                    const std::function<void(int64_t begin, int64_t end, std::span<double> out)>& terms);

/// Column sums of a [T, n] over all tokens, f64.
std::vector<double> column_sums(const Tensor& a, const TokenChunks& chunks, Communicator& comm);

}  // namespace cmoe

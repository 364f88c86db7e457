#pragma once

#include <functional>

#include "moe/expert_id.h"
#include "moe/routing.h"
#include "tensor/tensor.h"

namespace cmoe {

/// y[i] += weight * partial[i], one rounding for the product and one for the sum, i < hidden_size.
void add_partial(float* y, const float* partial, float weight, int64_t hidden_size);
/// The same for a partial of bfloat16, widened first.
void add_partial(float* y, const bf16* partial, float weight, int64_t hidden_size);

/// What dispatch, experts and combine compute together, on one rank, one row at a time: the specification of the fast path.
/// For each token t and its experts e, ascending: y[t] += weight(t, e) * expert(e, x[t]).
///
/// @param x        [T, d] f32
/// @param expert   writes [d] from [d]
/// @param y        [T, d] f32, added to
void reference_combine(const Tensor& x, const Routing& routing,
                       const std::function<void(GlobalExpert expert, const float* row, float* out)>& expert, Tensor& y);

}  // namespace cmoe

#pragma once

#include "backend/backend.h"

namespace cmoe {

/// F(x) = W_down (silu(W_gate x) * (W_up x)): a dense FFN, the shared expert, or one routed expert.
struct GatedFfn {
  Weight gate;       ///< [n, d]
  Weight up;         ///< [n, d]
  Weight down;       ///< [d, n]
  Tensor down_bias;  ///< [d] f32, or undefined: a constant that is added whenever the expert runs

  int64_t neurons() const { return gate.out_features(); }
  int64_t bytes() const { return gate.bytes() + up.bytes() + down.bytes(); }
};

/// y = F(x), or y += F(x). x, y [T, d]. Rows are processed in blocks, so the activations never take more than a few MB a
/// thread.
void gated_ffn(const Backend& backend, const GatedFfn& ffn, const Tensor& x, Tensor& y, bool accumulate = false);

}  // namespace cmoe

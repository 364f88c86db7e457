#pragma once

#include "moe/gated_ffn.h"
#include "train/lora.h"

namespace cmoe {

/// F(x) = W_down (silu(W_gate x) * (W_up x)) + bias with adapted projections: a dense FFN, a shared or a routed expert.
struct FfnBlock {
  LoraLinear gate, up, down;
  const Tensor* down_bias = nullptr;  ///< [d], frozen, or null

  struct Saved {
    Tensor gate, up;  ///< [T, n] before the product
    LoraLinear::Saved gate_lora, up_lora, down_lora;
  };
  /// y = or += F(x). @param tokens  the rows' numbers in their sequence, see lora_forward().
  void forward(const SequencePass& pass, const Tensor& x, std::span<const int32_t> tokens, Tensor& y, bool accumulate,
               Saved& saved) const;
  /// dx = or += the gradient of x.
  void backward(const SequencePass& pass, const Tensor& x, std::span<const int32_t> tokens, const Tensor& dy,
                const Saved& saved, Tensor& dx, bool accumulate) const;
};

}  // namespace cmoe

#pragma once

#include "train/lora.h"

namespace cmoe {

/// Documents of a packed sequence, as the rows of each: a token sees its own document only.
struct Segments {
  std::vector<int64_t> rows;       ///< of each document, one behind the other
  std::vector<int32_t> positions;  ///< [T] of each token in its document
};

/// x += W_o attention(rope(W_q a), rope(W_k a), W_v a) with a = norm(x), its projections adapted.
struct AttentionBlock {
  const Tensor* norm = nullptr;  ///< [d], frozen
  float epsilon = 0;
  int64_t head_dim = 0;
  const Tensor *rope_cos = nullptr, *rope_sin = nullptr;  ///< [positions, head_dim / 2]
  const Tensor* rope_back = nullptr;                      ///< -sin: the inverse rotation
  LoraLinear q, k, v, o;

  struct Saved {
    Tensor x;                          ///< input [T, d]
    Tensor a, query, key, value, out;  ///< after rope
    Tensor log_sum;                    ///< [T, heads], see Backend::attention
    LoraLinear::Saved q, k, v, o;
  };
  /// x [T, d] becomes the block's output.
  void forward(const SequencePass& pass, const Segments& segments, Tensor& x, Saved& saved) const;
  /// dx [T, d] on the block's output becomes that on its input.
  void backward(const SequencePass& pass, const Segments& segments, const Saved& saved, Tensor& dx) const;
};

}  // namespace cmoe

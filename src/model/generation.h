#pragma once

#include <functional>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "model/sampler.h"
#include "model/transformer.h"

namespace cmoe {

struct GenerationResult {
  std::vector<int32_t> tokens;  ///< new tokens, without the end token
  bool ended = false;           ///< an end token was drawn
  double prefill_seconds = 0, decode_seconds = 0;
  int64_t decode_steps = 0;
};

/// Continues a prompt until an end token or `max_tokens`. Collective: every rank passes the same prompt and options and gets
/// the same result; rank 0 owns the sequence, the others help with their experts.
/// @param on_token  called on rank 0 with each new token.
/// @param observer  sees every MoE layer on this rank.
/// @throws Error when prompt and max_tokens do not fit the model's max_position_embeddings.
GenerationResult generate(const Transformer& model, std::span<const int32_t> prompt, int64_t max_tokens,
                          const SamplingOptions& sampling, Communicator& comm,
                          const std::function<void(int32_t)>& on_token = {}, MoeObserver* observer = nullptr);

}  // namespace cmoe

#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "model/sampler.h"
#include "model/transformer.h"

namespace cmoe {

/// One prompt to continue.
struct BatchRequest {
  std::vector<int32_t> prompt;
  int64_t max_tokens = 64;   ///< new tokens at most
  SamplingOptions sampling;  ///< with a seed of its own, so that the answer does not depend on the other prompts
};

struct BatchAnswer {
  std::vector<int32_t> tokens;  ///< new tokens, without the end token
  bool ended = false;           ///< an end token was drawn
};

struct BatchLimits {
  int64_t max_batch = 8;          ///< sequences under way on one rank
  int64_t max_step_tokens = 512;  ///< of one rank: a longer prompt is read in pieces, beside the others' next tokens
  int64_t max_memory_bytes = 0;   ///< of one rank: weights, one step's activations, KV caches; 0 for no limit
};

struct BatchReport {
  int64_t steps = 0, prompt_tokens = 0, new_tokens = 0;
  int64_t most_sequences = 0;  ///< under way at once, on all ranks
  double seconds = 0;
};

/// Continues many prompts at once. Each sequence belongs to one rank, which keeps its KV cache and draws its tokens; rank 0
/// broadcasts each step's plan, finished sequences leave and waiting ones enter in their order, and every rank makes the same
/// collective calls in every step, with sequences or without. With f32 weights and rows an answer is the one that generate()
/// gives for the same prompt alone.
///
/// Collective over `world`, which the groups that share experts divide; all ranks pass the same requests and get all answers.
/// @param on_step  called on every rank after each step with the number of answers that are complete.
/// @throws Error   when a prompt is empty or too long for the model, or when its KV cache does not fit, with the numbers.
std::vector<BatchAnswer> generate_batch(const Transformer& model, std::span<const BatchRequest> requests,
                                        const BatchLimits& limits, Communicator& world, MoeObserver* observer = nullptr,
                                        BatchReport* report = nullptr,
                                        const std::function<void(int64_t answers)>& on_step = {});

}  // namespace cmoe

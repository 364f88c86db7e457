#include "model/generation.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "base/stage.h"
#include "base/timer.h"
#include "comm/stop.h"

namespace cmoe {

GenerationResult generate(const Transformer& model, std::span<const int32_t> prompt, int64_t max_tokens,
                          const SamplingOptions& sampling, Communicator& comm, const std::function<void(int32_t)>& on_token,
                          MoeObserver* observer) {
  const ModelConfig& config = model.config();
  const auto length = static_cast<int64_t>(prompt.size());
  CMOE_CHECK(length > 0, "generate: the prompt has no tokens");
  CMOE_CHECK(length + max_tokens <= config.max_position_embeddings,
             "generate: {} prompt tokens and --max-tokens {} are more than the model's {} positions", length, max_tokens,
             config.max_position_embeddings);
  const bool owner = comm.rank() == 0;
  KvCache cache(config, owner ? length + max_tokens : 0);
  Sampler sampler(sampling);
  GenerationResult result;
  std::vector<int32_t> input;
  if (owner) input.assign(prompt.begin(), prompt.end());
  Timer timer;
  while (static_cast<int64_t>(result.tokens.size()) < max_tokens) {
    set_stage("generate");
    stop_together(comm, "generate");
    const SequenceStep step{.tokens = input, .cache = &cache};
    const Batch batch(std::span(&step, 1));
    const Tensor hidden = model.forward(batch, observer);
    std::array<int32_t, 1> next{0};
    if (owner) {
      const int64_t last = batch.last_row(0);
      next[0] = sampler.next(model.logits(hidden.rows(last, last + 1)).span<float>());
    }
    comm.broadcast(std::span<int32_t>(next), 0);
    if (result.prefill_seconds == 0) {
      result.prefill_seconds = timer.seconds();
      timer = Timer();
    } else {
      ++result.decode_steps;
    }
    result.ended = std::find(config.eos_token_ids.begin(), config.eos_token_ids.end(), next[0]) != config.eos_token_ids.end();
    if (result.ended) break;
    result.tokens.push_back(next[0]);
    if (owner && on_token) on_token(next[0]);
    if (owner) input.assign(1, next[0]);
  }
  result.decode_seconds = timer.seconds();
  return result;
}

}  // namespace cmoe

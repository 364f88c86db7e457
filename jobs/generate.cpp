// cmoe generate: continue a prompt.

#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/log.h"
#include "data/chat_template.h"
#include "data/load_tokenizer.h"
#include "jobs/jobs.h"
#include "jobs/session.h"
#include "model/generation.h"

namespace cmoe::jobs {

int generate(int argc, char** argv, Environment& environment) {
  Session session(environment);
  std::string model_path, prompt, system, dtype = "f32";
  bool chat = false;
  int64_t max_tokens = 64, seed = 0;
  SamplingOptions sampling;
  Options options("cmoe generate", "Continues a prompt with a dense or carved model, and prints the text as it comes.");
  options.add("model", &model_path, "Hugging Face folder, GGUF file, or a folder that cmoe wrote");
  options.add("prompt", &prompt, "text to continue, or the user's message with --chat");
  options.add("chat", &chat, "put the prompt into the model's chat template");
  options.add("system", &system, "system message, with --chat");
  options.add("max-tokens", &max_tokens, "new tokens at most", {.least = 1});
  options.add("temperature", &sampling.temperature, "0 takes the most likely token", {.least = 0.0});
  options.add("top-k", &sampling.top_k, "draw from the k most likely tokens; 0 from all", {.least = 0});
  options.add("top-p", &sampling.top_p, "draw from the smallest set of tokens with this probability", {.least = 0.0, .most = 1.0});
  options.add("seed", &seed, "of the random draws", {.least = 0});
  options.add_choice("dtype", &dtype, {"f32", "bf16"}, "type of the weights while running");
  options.require("model");
  options.require("prompt");
  session.declare(options);
  if (!session.parse(options, argc, argv)) return 0;
  sampling.seed = static_cast<uint64_t>(seed);

  const Checkpoint checkpoint = session.open_model(model_path);
  const Tokenizer tokenizer = load_tokenizer(model_path);
  std::string text = prompt;
  if (chat) {
    CMOE_CHECK(!tokenizer.chat_template().empty(), "{}: has no chat template; leave out --chat", model_path);
    std::vector<ChatMessage> messages;
    if (!system.empty()) messages.push_back({"system", system});
    messages.push_back({"user", prompt});
    text = apply_chat_template(tokenizer, messages, /*add_generation_prompt=*/true);
  }
  const std::vector<int32_t> ids = tokenizer.encode(text, {.add_special = !chat});
  const Transformer model(checkpoint, session.backend(), parse_dtype(dtype));

  StreamDecoder decoder(tokenizer);
  const GenerationResult result = cmoe::generate(model, ids, max_tokens, sampling, session.world(), [&](int32_t id) {
    std::fputs(decoder.push(id).c_str(), stdout);
    std::fflush(stdout);
  });
  if (session.is_root()) {
    std::printf("%s\n", decoder.finish().c_str());
    log_info("prompt {} tokens in {:.2f} s ({:.0f} tokens/s); {} new tokens{}, {:.1f} tokens/s", ids.size(), result.prefill_seconds,
             static_cast<double>(ids.size()) / result.prefill_seconds, result.tokens.size(), result.ended ? " (ended)" : "",
             result.decode_steps > 0 ? static_cast<double>(result.decode_steps) / result.decode_seconds : 0.0);
  }
  return 0;
}

}  // namespace cmoe::jobs

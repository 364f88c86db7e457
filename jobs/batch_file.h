#pragma once

#include <optional>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "serve/batch_generation.h"

namespace cmoe::jobs {

/// Token ids of a prompt: as it stands, or as the user's message of the model's chat template, after `system` unless empty.
std::vector<int32_t> encode_prompt(const Tokenizer& tokenizer, const std::string& prompt, bool chat, const std::string& system,
                                   const std::string& model);

/// Prompts from JSON lines: {"prompt": text, "max_tokens": n, "chat": true, "seed": n}, all but the first optional; what a line
/// leaves out comes from `defaults`. Empty lines are passed over.
/// @throws Error naming file and line: no JSON object, no prompt, a key nobody knows, a value of the wrong kind.
std::vector<BatchRequest> read_batch(const std::string& path, const Tokenizer& tokenizer, const BatchRequest& defaults,
                                     bool chat, const std::string& system, const std::string& model);

/// One line per prompt, in their order: {"text", "finish_reason": "stop" or "length", "usage": {"prompt_tokens",
/// "completion_tokens"}}.
std::string answers_text(const Tokenizer& tokenizer, const std::vector<BatchRequest>& requests,
                         const std::vector<BatchAnswer>& answers);

}  // namespace cmoe::jobs

#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"

namespace cmoe {

struct ChatMessage {
  std::string role;  // system, user, assistant
  std::string content;
};

/// The prompt that a chat template makes of messages, as `transformers` apply_chat_template without tools.
///
/// The template is Jinja; done here: if, for (with else, filter, loop.*, break, continue), set, namespaces, the operators but
/// '**', slices, the common filters, tests and string and dict methods, white space control, raise_exception. Letters change
/// case one by one. What is not done is an Error naming the construct and its line, among it macro, include, strftime_now.
///
/// @param bos_token, eos_token  spelled out; empty is undefined to the template.
std::string apply_chat_template(std::string_view source, const std::vector<ChatMessage>& messages, std::string_view bos_token,
                                std::string_view eos_token, bool add_generation_prompt);

/// The same with the tokenizer's template, BOS and EOS. Encode the result without special tokens: the template writes them.
std::string apply_chat_template(const Tokenizer& tokenizer, const std::vector<ChatMessage>& messages,
                                bool add_generation_prompt);

}  // namespace cmoe

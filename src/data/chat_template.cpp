#include "data/chat_template.h"

#include "base/error.h"
#include "data/jinja/render.h"
#include "data/utf8.h"

namespace cmoe {

std::string apply_chat_template(std::string_view source, const std::vector<ChatMessage>& messages, std::string_view bos_token,
                                std::string_view eos_token, bool add_generation_prompt) {
  CMOE_CHECK(find_invalid_utf8(source) == std::string_view::npos, "chat template: not UTF-8");
  jinja::List list;
  for (const ChatMessage& message : messages) {
    for (const std::string* text : {&message.role, &message.content}) {
      const size_t broken = find_invalid_utf8(*text);
      CMOE_CHECK(broken == std::string::npos, "chat message {}: byte {} is not UTF-8", list.size(), broken);
    }
    list.push_back(jinja::Dict{{"role", message.role}, {"content", message.content}});
  }
  jinja::Dict variables{{"messages", std::move(list)},
                        {"tools", jinja::None{}},
                        {"documents", jinja::None{}},
                        {"add_generation_prompt", add_generation_prompt}};
  if (!bos_token.empty()) variables.emplace_back("bos_token", std::string(bos_token));
  if (!eos_token.empty()) variables.emplace_back("eos_token", std::string(eos_token));
  return jinja::render(jinja::parse(source), variables);
}

std::string apply_chat_template(const Tokenizer& tokenizer, const std::vector<ChatMessage>& messages,
                                bool add_generation_prompt) {
  CMOE_CHECK(!tokenizer.chat_template().empty(),
             "tokenizer: no chat template; expected one in tokenizer_config.json or the GGUF file");
  const auto spelled = [&](std::optional<int32_t> id) { return id ? tokenizer.token_text(*id) : std::string(); };
  return apply_chat_template(tokenizer.chat_template(), messages, spelled(tokenizer.bos_id()), spelled(tokenizer.eos_id()),
                             add_generation_prompt);
}

}  // namespace cmoe

#include "jobs/batch_file.h"

#include <nlohmann/json.hpp>
#include <sstream>

#include "base/error.h"
#include "base/read_file.h"
#include "data/chat_template.h"

namespace cmoe::jobs {
namespace {

template <class T>
T value_of(const nlohmann::json& row, const char* key, const char* kind, bool fits, const std::string& where) {
  CMOE_CHECK(fits, "{}: {} is {}; expected {}", where, key, row[key].dump(), kind);
  return row[key].get<T>();
}

BatchRequest read_row(const std::string& line, const std::string& where, const Tokenizer& tokenizer,
                      const BatchRequest& defaults, bool chat, const std::string& system, const std::string& model) {
  const nlohmann::json row = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  CMOE_CHECK(row.is_object() && row.contains("prompt"), "{}: expected a JSON object with a \"prompt\"", where);
  BatchRequest request = defaults;
  for (const auto& [key, value] : row.items()) {
    if (key == "max_tokens") {
      request.max_tokens =
          value_of<int64_t>(row, "max_tokens", "a number from 1 on", value.is_number_unsigned() && value > 0, where);
    } else if (key == "chat") {
      chat = value_of<bool>(row, "chat", "true or false", value.is_boolean(), where);
    } else if (key == "seed") {
      request.sampling.seed = value_of<uint64_t>(row, "seed", "a number from 0 on", value.is_number_unsigned(), where);
    } else {
      CMOE_CHECK(key == "prompt", "{}: key \"{}\" is unknown; expected prompt, max_tokens, chat or seed", where, key);
    }
  }
  const auto prompt = value_of<std::string>(row, "prompt", "a text", row["prompt"].is_string(), where);
  request.prompt = encode_prompt(tokenizer, prompt, chat, system, model);
  CMOE_CHECK(!request.prompt.empty(), "{}: the prompt has no tokens", where);
  return request;
}

}  // namespace

std::vector<int32_t> encode_prompt(const Tokenizer& tokenizer, const std::string& prompt, bool chat, const std::string& system,
                                   const std::string& model) {
  if (!chat) return tokenizer.encode(prompt);
  CMOE_CHECK(!tokenizer.chat_template().empty(), "{}: has no chat template; leave out --chat", model);
  std::vector<ChatMessage> messages;
  if (!system.empty()) messages.push_back({"system", system});
  messages.push_back({"user", prompt});
  return tokenizer.encode(apply_chat_template(tokenizer, messages, /*add_generation_prompt=*/true), {.add_special = false});
}

std::vector<BatchRequest> read_batch(const std::string& path, const Tokenizer& tokenizer, const BatchRequest& defaults,
                                     bool chat, const std::string& system, const std::string& model) {
  std::vector<BatchRequest> requests;
  std::istringstream lines(read_file(path));
  int64_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    requests.push_back(read_row(line, fmt::format("{}: line {}", path, number), tokenizer, defaults, chat, system, model));
  }
  return requests;
}

std::string answers_text(const Tokenizer& tokenizer, const std::vector<BatchRequest>& requests,
                         const std::vector<BatchAnswer>& answers) {
  std::string text;
  for (size_t i = 0; i < answers.size(); ++i) {
    const nlohmann::ordered_json row{
        {"text", tokenizer.decode(answers[i].tokens, /*skip_special=*/true)},
        {"finish_reason", answers[i].ended ? "stop" : "length"},
        {"usage", {{"prompt_tokens", requests[i].prompt.size()}, {"completion_tokens", answers[i].tokens.size()}}}};
    text += row.dump() + "\n";
  }
  return text;
}

}  // namespace cmoe::jobs

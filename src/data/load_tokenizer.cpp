#include "data/load_tokenizer.h"

#include <filesystem>

#include "base/error.h"
#include "tensor/gguf.h"

namespace cmoe {
namespace {

std::optional<int32_t> find_id(const GgufFile& file, const std::string& key) {
  const auto value = file.find_integer(key);
  if (!value) return std::nullopt;
  CMOE_CHECK(*value >= 0 && *value < (1 << 30), "{}: {} is {}; expected a token id", file.name(), key, *value);
  return static_cast<int32_t>(*value);
}

}  // namespace

GgufTokenizerData read_gguf_tokenizer(const GgufFile& file) {
  GgufTokenizerData data;
  data.model = file.string("tokenizer.ggml.model");
  data.pre = file.find_string("tokenizer.ggml.pre").value_or("");
  auto tokens = file.find_strings("tokenizer.ggml.tokens");
  CMOE_CHECK(tokens.has_value(), "{}: tokenizer.ggml.tokens is missing; expected the vocabulary", file.name());
  data.tokens = std::move(*tokens);
  if (const auto scores = file.find_numbers("tokenizer.ggml.scores")) data.scores.assign(scores->begin(), scores->end());
  if (const auto types = file.find_integers("tokenizer.ggml.token_type")) data.token_types.assign(types->begin(), types->end());
  if (auto merges = file.find_strings("tokenizer.ggml.merges")) data.merges = std::move(*merges);
  data.bos_id = find_id(file, "tokenizer.ggml.bos_token_id");
  data.eos_id = find_id(file, "tokenizer.ggml.eos_token_id");
  data.unknown_id = find_id(file, "tokenizer.ggml.unknown_token_id");
  data.padding_id = find_id(file, "tokenizer.ggml.padding_token_id");
  data.add_bos = file.find_bool("tokenizer.ggml.add_bos_token");
  data.add_eos = file.find_bool("tokenizer.ggml.add_eos_token");
  data.add_space_prefix = file.find_bool("tokenizer.ggml.add_space_prefix");
  data.chat_template = file.find_string("tokenizer.chat_template").value_or("");
  return data;
}

Tokenizer load_tokenizer(const std::string& model, const std::string& pre) {
  namespace fs = std::filesystem;
  if (fs::is_directory(model)) {
    const fs::path file = fs::path(model) / "tokenizer.json";
    CMOE_CHECK(fs::exists(file), "{}: no tokenizer.json in the folder; expected one beside config.json", model);
    return Tokenizer::from_json_file(file.string());
  }
  CMOE_CHECK(fs::exists(model), "{}: no such file or folder; expected a model folder or a GGUF file", model);
  if (fs::path(model).extension() == ".json") return Tokenizer::from_json_file(model);
  const GgufFile file{fs::path(model)};
  GgufTokenizerData data = read_gguf_tokenizer(file);
  if (!pre.empty()) data.pre = pre;
  return Tokenizer::from_gguf(data, file.name());
}

}  // namespace cmoe

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>
#include <unordered_map>

#include "base/error.h"
#include "data/tokenizer.h"
#include "data/utf8.h"

// GGUF metadata become the tokenizer.json that Hugging Face publishes for the same tokenizer; what reads that reads this.
namespace cmoe {
namespace {

using nlohmann::json;

enum TokenType : int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4 };

constexpr const char* kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

json byte_level(bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}};
}

json sequence_of(json first, json second) {
  json steps = json::array();
  steps.push_back(std::move(first));
  steps.push_back(std::move(second));
  return {{"type", "Sequence"}, {"pretokenizers", std::move(steps)}};
}

json split_by(const char* pattern) {
  return {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
}

/// What a `tokenizer.ggml.pre` name stands for.
struct PreName {
  json pre_tokenizer;
  bool nfc = false;
  bool ignore_merges = false;
  bool add_bos = false;
};

PreName pre_of(const std::string& pre, const std::string& name) {
  // `transformers` reads "smollm" as GPT-2's splitting; SmolLM's published tokenizer.json and llama.cpp put single digits apart
  // first. Ids differ only where two white-space characters or more stand before a digit. The default here is what
  // AutoTokenizer gives for the same GGUF file, so that its token counts and losses can be compared.
  if (pre == "smollm") return {byte_level(true)};
  if (pre == "smollm-digits") return {sequence_of({{"type", "Digits"}, {"individual_digits", true}}, byte_level(true))};
  if (pre == "llama-bpe" || pre == "llama3" || pre == "llama-v3") {
    return {sequence_of(split_by(kLlama3Pattern), byte_level(false)), false, true, true};
  }
  if (pre == "qwen2") return {sequence_of(split_by(kQwen2Pattern), byte_level(false)), true};
  if (pre == "gpt-2" || pre == "default" || pre.empty()) return {byte_level(true)};
  fail("{}: tokenizer.ggml.pre: '{}' is not supported; expected smollm, smollm-digits, llama-bpe, qwen2, gpt-2 or default",
       name, pre);
}

int32_t type_of(const GgufTokenizerData& data, size_t id) { return data.token_types.empty() ? kNormal : data.token_types[id]; }

json added_tokens(const GgufTokenizerData& data) {
  json list = json::array();
  for (size_t id = 0; id < data.tokens.size(); ++id) {
    const int32_t type = type_of(data, id);
    const bool special = type == kControl || (type == kUnknown && data.model == "llama");
    if (!special && type != kUserDefined) continue;
    list.push_back({{"id", id},
                    {"content", data.tokens[id]},
                    {"single_word", false},
                    {"lstrip", false},
                    {"rstrip", false},
                    {"normalized", false},
                    {"special", special}});
  }
  return list;
}

json vocab_of(const GgufTokenizerData& data, const std::string& name) {
  json vocab = json::object();
  for (size_t id = 0; id < data.tokens.size(); ++id) {
    const std::string& token = data.tokens[id];
    CMOE_CHECK(find_invalid_utf8(token) == std::string_view::npos, "{}: tokenizer.ggml.tokens[{}]: not UTF-8", name, id);
    CMOE_CHECK(vocab.emplace(token, id).second, "{}: tokenizer.ggml.tokens[{}]: token '{}' stands at {} already", name, id,
               token, vocab[token].get<size_t>());
  }
  return vocab;
}

/// SentencePiece merges any two neighbours whose joint spelling is a token, best score first; as ranked pairs.
/// Source: what `transformers` generates when it converts a SentencePiece BPE.
std::vector<std::pair<std::string, std::string>> merges_of_scores(const GgufTokenizerData& data, const std::string& name) {
  CMOE_CHECK(data.scores.size() == data.tokens.size(), "{}: tokenizer.ggml.scores: expected {} scores, one a token; found {}",
             name, data.tokens.size(), data.scores.size());
  std::unordered_map<std::string_view, size_t> ids;
  for (size_t id = 0; id < data.tokens.size(); ++id) {
    if (type_of(data, id) == kNormal) ids.emplace(data.tokens[id], id);
  }
  struct Pair {
    float score;
    size_t left;
    size_t right;
  };
  std::vector<Pair> pairs;
  for (size_t id = 0; id < data.tokens.size(); ++id) {
    if (type_of(data, id) != kNormal) continue;
    const std::string_view token = data.tokens[id];
    for (size_t cut = 1; cut < token.size(); ++cut) {
      if ((static_cast<uint8_t>(token[cut]) & 0xc0) == 0x80) continue;  // inside a character
      const auto left = ids.find(token.substr(0, cut));
      const auto right = ids.find(token.substr(cut));
      if (left != ids.end() && right != ids.end()) pairs.push_back({data.scores[id], left->second, right->second});
    }
  }
  std::stable_sort(pairs.begin(), pairs.end(), [](const Pair& a, const Pair& b) { return a.score > b.score; });
  std::vector<std::pair<std::string, std::string>> merges;
  merges.reserve(pairs.size());
  for (const Pair& pair : pairs) merges.emplace_back(data.tokens[pair.left], data.tokens[pair.right]);
  return merges;
}

/// Post-processor that puts BOS before and EOS behind the text.
json post_processor(const GgufTokenizerData& data, bool add_bos, bool add_eos, json otherwise) {
  json single = json::array();
  json special = json::object();
  const auto add = [&](int32_t id) {
    const std::string& token = data.tokens[static_cast<size_t>(id)];
    single.push_back({{"SpecialToken", {{"id", token}, {"type_id", 0}}}});
    special[token] = {{"id", token}, {"ids", json::array({id})}, {"tokens", json::array({token})}};
  };
  if (add_bos && data.bos_id) add(*data.bos_id);
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  if (add_eos && data.eos_id) add(*data.eos_id);
  if (special.empty()) return otherwise;
  json pair = single;
  for (json part : single) {
    if (part.contains("Sequence")) part["Sequence"]["id"] = "B";
    part.begin().value()["type_id"] = 1;
    pair.push_back(std::move(part));
  }
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", special}};
}

json config_of(const GgufTokenizerData& data, bool add_bos, bool add_eos) {
  json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                 {"clean_up_tokenization_spaces", false},
                 {"add_bos_token", add_bos},
                 {"add_eos_token", add_eos}};
  const auto put = [&](const char* field, std::optional<int32_t> id) {
    if (id) config[field] = data.tokens[static_cast<size_t>(*id)];
  };
  put("bos_token", data.bos_id);
  put("eos_token", data.eos_id);
  put("unk_token", data.unknown_id);
  put("pad_token", data.padding_id);
  if (!data.chat_template.empty()) config["chat_template"] = data.chat_template;
  return config;
}

void check(const GgufTokenizerData& data, const std::string& name) {
  const size_t count = data.tokens.size();
  CMOE_CHECK(count > 0, "{}: tokenizer.ggml.tokens: no tokens", name);
  CMOE_CHECK(data.token_types.empty() || data.token_types.size() == count,
             "{}: tokenizer.ggml.token_type: expected {} types, one a token; found {}", name, count, data.token_types.size());
  const std::pair<const char*, std::optional<int32_t>> ids[] = {
      {"bos", data.bos_id}, {"eos", data.eos_id}, {"unknown", data.unknown_id}, {"padding", data.padding_id}};
  for (const auto& [field, id] : ids) {
    const bool fits = !id || (*id >= 0 && static_cast<size_t>(*id) < count);
    CMOE_CHECK(fits, "{}: tokenizer.ggml.{}_token_id: {} is out of range; expected 0 to {}", name, field, *id, count - 1);
  }
}

}  // namespace

Tokenizer Tokenizer::from_gguf(const GgufTokenizerData& data, const std::string& name) {
  check(data, name);
  json root = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}, {"added_tokens", added_tokens(data)}};
  json model = {{"type", "BPE"},
                {"dropout", nullptr},
                {"unk_token", nullptr},
                {"continuing_subword_prefix", nullptr},
                {"end_of_word_suffix", nullptr}};
  bool add_bos = true;
  const bool add_eos = data.add_eos.value_or(false);
  if (data.model == "gpt2") {
    PreName pre = pre_of(data.pre, name);
    add_bos = data.add_bos.value_or(pre.add_bos);
    root["normalizer"] = pre.nfc ? json{{"type", "NFC"}} : json();
    root["pre_tokenizer"] = std::move(pre.pre_tokenizer);
    root["post_processor"] = post_processor(data, add_bos, add_eos, byte_level(true));
    root["decoder"] = byte_level(true);
    model.update({{"fuse_unk", false},
                  {"byte_fallback", false},
                  {"ignore_merges", pre.ignore_merges},
                  {"vocab", vocab_of(data, name)},
                  {"merges", data.merges}});
  } else if (data.model == "llama") {
    add_bos = data.add_bos.value_or(true);
    const bool prefix = data.add_space_prefix.value_or(true);
    json replace = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}};
    json normalizers = json::array();
    if (prefix) normalizers.push_back({{"type", "Prepend"}, {"prepend", "▁"}});
    normalizers.push_back(std::move(replace));
    json decoders = json::array();
    decoders.push_back({{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}});
    decoders.push_back({{"type", "ByteFallback"}});
    decoders.push_back({{"type", "Fuse"}});
    if (prefix) decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
    root["normalizer"] = {{"type", "Sequence"}, {"normalizers", std::move(normalizers)}};
    root["pre_tokenizer"] = nullptr;
    root["post_processor"] = post_processor(data, add_bos, add_eos, nullptr);
    root["decoder"] = {{"type", "Sequence"}, {"decoders", std::move(decoders)}};
    if (data.unknown_id) model["unk_token"] = data.tokens[static_cast<size_t>(*data.unknown_id)];
    model.update({{"fuse_unk", true},
                  {"byte_fallback", true},
                  {"ignore_merges", false},
                  {"vocab", vocab_of(data, name)},
                  {"merges", merges_of_scores(data, name)}});
  } else {
    fail("{}: tokenizer.ggml.model: '{}' is not supported; expected gpt2 or llama", name, data.model);
  }
  root["model"] = std::move(model);
  return from_parsed(root, root.dump(), config_of(data, add_bos, add_eos), name);
}

}  // namespace cmoe

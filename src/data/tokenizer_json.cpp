#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "data/tokenizer.h"
#include "data/tokenizer_impl.h"
#include "data/utf8.h"

namespace cmoe {
namespace {

using nlohmann::json;

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  CMOE_CHECK(file.good(), "{}: cannot be opened; expected a readable file", path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// A member that may be missing or null.
const json& member(const json& object, const char* name) {
  static const json null;
  const auto it = object.find(name);
  return it == object.end() ? null : *it;
}

/// "<s>" or {"content": "<s>", ...}; empty for null.
std::string token_content(const json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_object()) return value.value("content", "");
  return {};
}

/// Ids before and behind the text, from TemplateProcessing; ByteLevel changes offsets only.
void read_post_processor(const json& spec, const std::string& where, std::vector<int32_t>& prefix,
                         std::vector<int32_t>& suffix) {
  if (spec.is_null()) return;
  const auto type = spec.at("type").get<std::string>();
  if (type == "ByteLevel") return;
  if (type == "Sequence") {
    size_t i = 0;
    for (const auto& step : spec.at("processors")) {
      read_post_processor(step, fmt::format("{}.processors[{}]", where, i++), prefix, suffix);
    }
    return;
  }
  CMOE_CHECK(type == "TemplateProcessing",
             "{}.type: post-processor '{}' is not supported; expected TemplateProcessing, ByteLevel or a Sequence of them",
             where, type);
  bool text_seen = false;
  std::vector<int32_t> before;
  for (const auto& part : spec.at("single")) {
    if (part.contains("Sequence")) {
      CMOE_CHECK(!text_seen, "{}.single: the text stands twice; expected one Sequence", where);
      text_seen = true;
      continue;
    }
    const auto name = part.at("SpecialToken").at("id").get<std::string>();
    CMOE_CHECK(spec.at("special_tokens").contains(name), "{}.special_tokens: '{}' of the template is missing", where, name);
    for (const auto& id : spec["special_tokens"][name].at("ids")) (text_seen ? suffix : before).push_back(id.get<int32_t>());
  }
  CMOE_CHECK(text_seen, "{}.single: no Sequence in the template; expected the text to stand in it", where);
  prefix.insert(prefix.begin(), before.begin(), before.end());
}

void read_added_tokens(const json& list, const std::string& where, Tokenizer::Impl& impl) {
  size_t i = 0;
  for (const auto& entry : list) {
    const std::string name = fmt::format("{}[{}]", where, i++);
    AddedToken token;
    token.id = entry.at("id").get<int32_t>();
    token.content = entry.at("content").get<std::string>();
    token.special = entry.value("special", false);
    token.normalized = entry.value("normalized", !token.special);
    token.single_word = entry.value("single_word", false);
    token.lstrip = entry.value("lstrip", false);
    token.rstrip = entry.value("rstrip", false);
    CMOE_CHECK(token.id >= 0 && token.id < (1 << 24), "{}.id: {} is out of range", name, token.id);
    const int32_t known = impl.model->find(token.content);
    CMOE_CHECK(known < 0 || known == token.id, "{}: token '{}' has id {}, but id {} in the vocabulary", name, token.content,
               token.id, known);
    const auto index = static_cast<size_t>(token.id);
    if (impl.spellings.size() <= index) impl.spellings.resize(index + 1);
    CMOE_CHECK(impl.spellings[index].empty() || impl.spellings[index] == token.content,
               "{}: id {} stands for '{}' already; found '{}'", name, token.id, impl.spellings[index], token.content);
    impl.spellings[index] = token.content;
    impl.special.resize(impl.spellings.size());
    impl.special[index] = token.special;
    impl.added_ids[token.content] = token.id;
    if (token.normalized) {
      impl.normalized_tokens.add(token, impl.normalizer.apply(token.content));
    } else {
      impl.raw_tokens.add(token, token.content);
    }
  }
}

/// BOS, EOS, chat template; add_bos_token and add_eos_token replace the post-processor, as in `transformers` 5.
void read_config(const json& config, const std::string& where, const Tokenizer& tokenizer, Tokenizer::Impl& impl) {
  const auto find = [&](const char* field) -> std::optional<int32_t> {
    const std::string content = token_content(member(config, field));
    return content.empty() ? std::nullopt : tokenizer.find_token(content);
  };
  impl.bos_id = find("bos_token");
  impl.eos_id = find("eos_token");
  if (config.contains("add_bos_token") || config.contains("add_eos_token")) {
    impl.prefix.clear();
    impl.suffix.clear();
    if (member(config, "add_bos_token") == true && impl.bos_id) impl.prefix.push_back(*impl.bos_id);
    if (member(config, "add_eos_token") == true && impl.eos_id) impl.suffix.push_back(*impl.eos_id);
  }
  const json& chat = member(config, "chat_template");
  if (chat.is_string()) {
    impl.chat_template = chat.get<std::string>();
  } else if (chat.is_array()) {
    for (const auto& entry : chat) {
      if (entry.value("name", "") == "default") impl.chat_template = entry.at("template").get<std::string>();
    }
  } else {
    CMOE_CHECK(chat.is_null(), "{}: chat_template is {}; expected a string or a list of named ones", where, chat.type_name());
  }
}

}  // namespace

Tokenizer Tokenizer::from_parsed(const json& root, std::string text, const json& config, const std::string& name) {
  auto impl = std::make_shared<Impl>();
  const Tokenizer tokenizer{impl};
  try {
    impl->normalizer = Normalizer(member(root, "normalizer"), name + ": normalizer");
    impl->pre_tokenizer = PreTokenizer(member(root, "pre_tokenizer"), name + ": pre_tokenizer");
    impl->model = std::make_unique<Bpe>(root.at("model"), impl->pre_tokenizer.byte_level(), name + ": model");
    impl->decoder = Decoder(member(root, "decoder"), name + ": decoder");
    impl->spellings = impl->model->tokens();
    impl->special.resize(impl->spellings.size());
    read_added_tokens(member(root, "added_tokens"), name + ": added_tokens", *impl);
    read_post_processor(member(root, "post_processor"), name + ": post_processor", impl->prefix, impl->suffix);
    impl->cut_at_metaspace = impl->pre_tokenizer.empty() && impl->model->words_start_with_metaspace();
    read_config(config, name + " (tokenizer_config.json)", tokenizer, *impl);
  } catch (const json::exception& e) {
    fail("{}: not a tokenizer file of the expected form; {}", name, e.what());
  }
  for (const auto* ids : {&impl->prefix, &impl->suffix}) {
    for (int32_t id : *ids) CMOE_CHECK(!tokenizer.token_text(id).empty(), "{}: post_processor: no token has id {}", name, id);
  }
  impl->json = std::move(text);
  impl->config_json = config.empty() ? std::string() : config.dump(2);
  return tokenizer;
}

Tokenizer Tokenizer::from_json(std::string_view tokenizer_json, std::string_view config_json, const std::string& name) {
  json root, config = json::object();
  try {
    root = json::parse(tokenizer_json);
    if (!config_json.empty()) config = json::parse(config_json);
  } catch (const json::exception& e) {
    fail("{}: not a tokenizer file of the expected form; {}", name, e.what());
  }
  return from_parsed(root, std::string(tokenizer_json), config, name);
}

Tokenizer Tokenizer::from_json_file(const std::string& path) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::path(path).parent_path();
  json config = json::object();
  for (const char* file : {"special_tokens_map.json", "tokenizer_config.json"}) {  // the later one wins
    const std::string name = (folder / file).string();
    if (!fs::exists(name)) continue;
    try {
      config.update(json::parse(read_file(name)));
    } catch (const json::exception& e) {
      fail("{}: not JSON of the expected form; {}", name, e.what());
    }
  }
  if (fs::exists(folder / "chat_template.jinja")) {
    config["chat_template"] = read_file((folder / "chat_template.jinja").string());
  }
  std::string text = read_file(path);
  json root;
  try {
    root = json::parse(text);
  } catch (const json::exception& e) {
    fail("{}: not JSON; {}", path, e.what());
  }
  return from_parsed(root, std::move(text), config, path);
}

}  // namespace cmoe

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "data/load_tokenizer.h"
#include "data/support.h"
#include "data/tokenizer.h"

namespace cmoe {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using Ids = std::vector<int32_t>;

const json& golden() {
  static const json instance = json::parse(read_whole(CMOE_SOURCE_DIR "/tests/data/tokenizer_golden.json"));
  return instance;
}

/// The golden base tokenizer as GGUF metadata.
GgufTokenizerData byte_level_data(const std::string& pre) {
  GgufTokenizerData data;
  data.model = "gpt2";
  data.pre = pre;
  const json& model = golden()["base"]["model"];
  data.tokens.resize(model["vocab"].size());
  for (const auto& [token, id] : model["vocab"].items()) data.tokens[id.get<size_t>()] = token;
  data.token_types.assign(data.tokens.size(), 1);
  data.token_types[1] = data.token_types[2] = 3;  // <s>, </s>
  for (const auto& merge : model["merges"])
    data.merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  data.bos_id = 1;
  data.eos_id = 2;
  return data;
}

/// The golden rows of a case must come out of `data`.
void expect_case(const GgufTokenizerData& data, const std::string& name) {
  const Tokenizer tokenizer = Tokenizer::from_gguf(data);
  const Tokenizer again = Tokenizer::from_json(tokenizer.to_json(), tokenizer.config_json());
  for (const auto& entry : golden()["cases"]) {
    if (entry["name"] != name) continue;
    for (size_t i = 0; i < golden()["texts"].size(); ++i) {
      const auto text = golden()["texts"][i].get<std::string>();
      const auto ids = entry["rows"][i]["ids"].get<Ids>();
      EXPECT_EQ(tokenizer.encode(text), ids) << name << ": " << text;
      EXPECT_EQ(again.encode(text), ids) << name << ": " << text;
    }
    return;
  }
  FAIL() << "no golden case " << name;
}

TEST(TokenizerGguf, PreNamesStandForThePublishedTokenizers) {
  expect_case(byte_level_data("gpt-2"), "byte level");
  expect_case(byte_level_data("default"), "byte level");
  expect_case(byte_level_data("smollm"), "byte level");
  expect_case(byte_level_data("smollm-digits"), "digits");
  expect_case(byte_level_data("qwen2"), "qwen 2");
  expect_case(byte_level_data("llama-bpe"), "llama 3");  // adds BOS by default
}

TEST(TokenizerGguf, BosAndEosFollowTheFlags) {
  GgufTokenizerData data = byte_level_data("gpt-2");
  data.add_bos = data.add_eos = true;
  expect_case(data, "bos and eos");
  data = byte_level_data("llama-bpe");
  data.add_bos = false;
  EXPECT_EQ(Tokenizer::from_gguf(data).encode(""), Ids{});
}

TEST(TokenizerGguf, SentencePieceScoresBecomeMerges) {
  const json& model = golden()["spm"]["model"];
  GgufTokenizerData data;
  data.model = "llama";
  data.tokens.resize(model["vocab"].size());
  for (const auto& [token, id] : model["vocab"].items()) data.tokens[id.get<size_t>()] = token;
  data.token_types.assign(data.tokens.size(), 1);
  data.scores.assign(data.tokens.size(), -1e6f);
  for (size_t id = 0; id < data.tokens.size(); ++id) {
    if (data.tokens[id].starts_with("<0x")) data.token_types[id] = 6;
  }
  data.token_types[0] = 2;
  data.token_types[1] = data.token_types[2] = 3;
  data.bos_id = 1;
  data.eos_id = 2;
  data.unknown_id = 0;
  // Rank of the merge that makes a token is its score; the vocabulary of the trainer has one merge a token.
  float score = 0;
  for (const auto& merge : model["merges"]) {
    const std::string token = merge[0].get<std::string>() + merge[1].get<std::string>();
    data.scores[model["vocab"][token].get<size_t>()] = --score;
  }
  const Tokenizer tokenizer = Tokenizer::from_gguf(data);
  // Scores allow every pair that makes a token, merges only the trainer's, so ids may differ from the golden ones inside a
  // word; known words and everything about spaces, bytes and marks must not.
  for (const char* text : {"the ship", " the  harbour\n", "<s>sailing</s>", "你🙂", "", "Sail,"}) {
    const Ids ids = tokenizer.encode(text);
    EXPECT_EQ(ids.front(), 1);
    EXPECT_EQ(tokenizer.decode(ids, true), std::string(text) == "<s>sailing</s>" ? "sailing" : text);
  }
  EXPECT_EQ(tokenizer.encode("the").back(), *tokenizer.find_token("▁the"));
  data.add_space_prefix = false;
  const Tokenizer bare = Tokenizer::from_gguf(data);
  EXPECT_FALSE(bare.token_text(bare.encode("the")[1]).starts_with("▁"));
  EXPECT_EQ(bare.decode(bare.encode(" the"), true), " the");
  data.scores.pop_back();
  EXPECT_THAT(message_of([&] { Tokenizer::from_gguf(data); }), HasSubstr("tokenizer.ggml.scores: expected"));
}

TEST(TokenizerGguf, ConfigSaysWhatTransformersNeeds) {
  GgufTokenizerData data = byte_level_data("gpt-2");
  data.chat_template = "{{ messages }}";
  data.padding_id = 0;
  const Tokenizer tokenizer = Tokenizer::from_gguf(data);
  EXPECT_EQ(tokenizer.chat_template(), "{{ messages }}");
  const json config = json::parse(tokenizer.config_json());
  EXPECT_EQ(config["tokenizer_class"], "PreTrainedTokenizerFast");
  EXPECT_EQ(config["bos_token"], "<s>");
  EXPECT_EQ(config["eos_token"], "</s>");
  EXPECT_EQ(config["pad_token"], "<unk>");
  EXPECT_EQ(config["add_bos_token"], false);
  EXPECT_EQ(config["chat_template"], "{{ messages }}");
}

TEST(TokenizerGguf, NamesWhatIsWrong) {
  const auto refusal = [](auto&& change) {
    GgufTokenizerData data = byte_level_data("gpt-2");
    change(data);
    return message_of([&] { Tokenizer::from_gguf(data, "m.gguf"); });
  };
  EXPECT_THAT(refusal([](auto& data) { data.pre = "tekken"; }),
              HasSubstr("m.gguf: tokenizer.ggml.pre: 'tekken' is not supported"));
  EXPECT_THAT(refusal([](auto& data) { data.model = "bert"; }),
              HasSubstr("m.gguf: tokenizer.ggml.model: 'bert' is not supported"));
  EXPECT_THAT(refusal([](auto& data) { data.tokens.clear(); }), HasSubstr("tokenizer.ggml.tokens: no tokens"));
  EXPECT_THAT(refusal([](auto& data) { data.tokens[5] = data.tokens[6]; }), HasSubstr("stands at 5 already"));
  EXPECT_THAT(refusal([](auto& data) { data.tokens[5] = "\xff"; }), HasSubstr("tokenizer.ggml.tokens[5]: not UTF-8"));
  EXPECT_THAT(refusal([](auto& data) { data.token_types.pop_back(); }), HasSubstr("tokenizer.ggml.token_type: expected"));
  EXPECT_THAT(refusal([](auto& data) { data.bos_id = 100000; }),
              HasSubstr("tokenizer.ggml.bos_token_id: 100000 is out of range"));
  EXPECT_THAT(refusal([](auto& data) { data.merges[3] = "q q"; }), HasSubstr("m.gguf: model.merges[3]: token 'qq' is not in"));
}

TEST(TokenizerGguf, LoadsFoldersAndNamesWhatIsMissing) {
  const ScratchFolder folder;
  EXPECT_THAT(message_of([&] { load_tokenizer(folder.path()); }), HasSubstr("no tokenizer.json in the folder"));
  EXPECT_THAT(message_of([&] { load_tokenizer(folder.path() + "/none"); }), HasSubstr("no such file or folder"));
  const std::string file = folder.write("tokenizer.json", golden()["base"].dump());
  EXPECT_EQ(load_tokenizer(folder.path()).encode("the"), load_tokenizer(file).encode("the"));
}

}  // namespace
}  // namespace cmoe

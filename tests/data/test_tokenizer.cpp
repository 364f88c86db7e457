#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "data/support.h"
#include "data/tokenizer.h"
#include "data/utf8.h"

namespace cmoe {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using Ids = std::vector<int32_t>;

/// What Hugging Face `tokenizers` gives; see make_tokenizer_golden.py.
const json& golden() {
  static const json instance = json::parse(read_whole(CMOE_SOURCE_DIR "/tests/data/tokenizer_golden.json"));
  return instance;
}

/// The base tokenizer with a case's fields put in.
json patched(const json& patch) {
  json spec = golden()["base"];
  for (const auto& [key, value] : patch.items()) {
    if (value == "spm") {
      spec[key] = golden()["spm"][key];
    } else if (key == "model") {
      for (const auto& [field, part] : value.items()) spec["model"][field] = part == "short" ? golden()["short"] : part;
    } else {
      spec[key] = value;
    }
  }
  return spec;
}

Tokenizer tokenizer_of(const json& patch, const std::string& config = "") {
  return Tokenizer::from_json(patched(patch).dump(), config);
}

std::string refusal(const json& patch, const std::string& config = "") {
  return message_of([&] { tokenizer_of(patch, config); });
}

TEST(Tokenizer, EqualsHuggingFaceOnEverySupportedKind) {
  for (const auto& entry : golden()["cases"]) {
    SCOPED_TRACE(entry["name"].get<std::string>());
    const Tokenizer tokenizer = tokenizer_of(entry["patch"]);
    for (size_t i = 0; i < golden()["texts"].size(); ++i) {
      const auto text = golden()["texts"][i].get<std::string>();
      const json& row = entry["rows"][i];
      SCOPED_TRACE(text);
      const auto ids = row["ids"].get<Ids>();
      const Ids plain = row.value("plain", ids);
      EXPECT_EQ(tokenizer.encode(text), ids);
      EXPECT_EQ(tokenizer.encode(text, {.add_special = false}), plain);
      EXPECT_EQ(tokenizer.encode(text, {.add_special = false, .parse_special = false}), row.value("as_text", plain));
      const std::string decoded = row.value("decoded", text);
      EXPECT_EQ(tokenizer.decode(ids), decoded);
      EXPECT_EQ(tokenizer.decode(ids, true), row.value("skipped", decoded));
    }
  }
}

TEST(Tokenizer, StreamGivesTheTextInWholeCharacters) {
  for (const auto& entry : golden()["cases"]) {
    SCOPED_TRACE(entry["name"].get<std::string>());
    const Tokenizer tokenizer = tokenizer_of(entry["patch"]);
    for (const auto& row : entry["rows"]) {
      const auto ids = row["ids"].get<Ids>();
      StreamDecoder stream(tokenizer, false);
      std::string text;
      for (int32_t id : ids) {
        const std::string part = stream.push(id);
        EXPECT_EQ(find_invalid_utf8(part), std::string::npos);
        text += part;
      }
      text += stream.finish();
      EXPECT_EQ(text, tokenizer.decode(ids));
    }
  }
}

TEST(Tokenizer, StreamHoldsBackHalfACharacterAndGivesUpAtTheEnd) {
  const Tokenizer tokenizer = tokenizer_of(json::object());
  const Ids bytes = tokenizer.encode("🙂");  // four single bytes: the small vocabulary has no emoji
  ASSERT_EQ(bytes.size(), 4u);
  StreamDecoder stream(tokenizer);
  EXPECT_EQ(stream.push(bytes[0]), "");
  EXPECT_EQ(stream.push(bytes[1]), "");
  EXPECT_EQ(stream.push(bytes[2]), "");
  EXPECT_EQ(stream.push(bytes[3]), "🙂");
  EXPECT_EQ(stream.push(bytes[0]), "");
  EXPECT_EQ(stream.push(*tokenizer.find_token("a")), "\ufffda");
  stream.push(bytes[0]);
  EXPECT_EQ(stream.finish(), "\ufffd");
  EXPECT_EQ(stream.finish(), "");
}

TEST(Tokenizer, LongWordsMergeAsShortOnes) {
  // 48 symbols and fewer are merged by scanning, more through a heap; a word of many copies must agree with the golden rule
  // that merging is by rank: compare both sides of the border with an independent rule, one merge at a time over the whole
  // word.
  const Tokenizer tokenizer = tokenizer_of(json::object());
  std::vector<std::pair<std::string, std::string>> merges = golden()["base"]["model"]["merges"];
  for (size_t length : {3, 20, 47, 48, 49, 50, 200}) {
    std::string word;
    for (size_t i = 0; word.size() < length; ++i) word += "sailingsongthemorningharbours"[i * i % 29];
    std::vector<std::string> symbols;
    for (char c : word) symbols.emplace_back(1, c);
    for (bool merged = true; merged;) {
      merged = false;
      for (const auto& [left, right] : merges) {
        for (size_t i = 0; i + 1 < symbols.size() && !merged; ++i) {
          if (symbols[i] != left || symbols[i + 1] != right) continue;
          symbols[i] += right;
          symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(i) + 1);
          merged = true;
        }
        if (merged) break;
      }
    }
    Ids expected;
    for (const auto& symbol : symbols) expected.push_back(*tokenizer.find_token(symbol));
    EXPECT_EQ(tokenizer.encode(word), expected) << word;
  }
}

TEST(Tokenizer, KnowsItsTokens) {
  const Tokenizer tokenizer = tokenizer_of(json::object(), R"({"bos_token": {"content": "<s>"}, "eos_token": "</s>"})");
  EXPECT_EQ(tokenizer.bos_id(), 1);
  EXPECT_EQ(tokenizer.eos_id(), 2);
  EXPECT_EQ(tokenizer.token_text(1), "<s>");
  EXPECT_TRUE(tokenizer.is_special(1));
  EXPECT_FALSE(tokenizer.is_special(50));
  EXPECT_EQ(tokenizer.vocab_size(), static_cast<int64_t>(golden()["base"]["model"]["vocab"].size()));
  EXPECT_EQ(tokenizer.token_text(-1), "");
  EXPECT_EQ(tokenizer.token_text(1 << 20), "");
  EXPECT_EQ(tokenizer.decode(Ids{-1, 1 << 20}), "");
  EXPECT_FALSE(tokenizer.find_token("no such token"));
  EXPECT_EQ(json::parse(tokenizer.to_json()), golden()["base"]);
}

TEST(Tokenizer, ConfigSetsBosEosAndTemplate) {
  const std::string config = R"({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true, "add_eos_token": true,
                                 "chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]})";
  const Tokenizer tokenizer = tokenizer_of(json::object(), config);
  EXPECT_EQ(tokenizer.encode(""), (Ids{1, 2}));
  EXPECT_EQ(tokenizer.chat_template(), "D");
  const json post = patched(json::object())["post_processor"];
  json bos = golden()["cases"][6]["patch"];
  ASSERT_EQ(golden()["cases"][6]["name"], "bos and eos");
  EXPECT_EQ(tokenizer_of(bos, R"({"bos_token": "<s>", "add_bos_token": false})").encode(""), Ids{});
  EXPECT_EQ(tokenizer_of(bos, R"({"bos_token": "<s>"})").encode(""), (Ids{1, 2}));
}

TEST(Tokenizer, ReadsAFolder) {
  const ScratchFolder folder;
  const std::string path = folder.write("tokenizer.json", golden()["base"].dump());
  EXPECT_FALSE(Tokenizer::from_json_file(path).bos_id());
  folder.write("special_tokens_map.json", R"({"bos_token": "</s>", "eos_token": "</s>"})");
  folder.write("tokenizer_config.json", R"({"bos_token": "<s>", "chat_template": "old"})");
  folder.write("chat_template.jinja", "{{ messages }}");
  const Tokenizer tokenizer = Tokenizer::from_json_file(path);
  EXPECT_EQ(tokenizer.bos_id(), 1);
  EXPECT_EQ(tokenizer.eos_id(), 2);
  EXPECT_EQ(tokenizer.chat_template(), "{{ messages }}");
  folder.write("tokenizer_config.json", "{");
  EXPECT_THAT(message_of([&] { Tokenizer::from_json_file(path); }), HasSubstr("tokenizer_config.json: not JSON"));
  EXPECT_THAT(message_of([&] { Tokenizer::from_json_file(ScratchFolder().path() + "/none.json"); }),
              HasSubstr("cannot be opened"));
}

TEST(Tokenizer, RefusesTextThatIsNotUtf8) {
  const Tokenizer tokenizer = tokenizer_of(json::object());
  for (const std::string bad : {"\xff", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82", "\x80"}) {
    EXPECT_EQ(message_of([&] { tokenizer.encode("12345678abc" + bad); }), "text: byte 11 is not UTF-8; expected UTF-8 text");
  }
}

TEST(Tokenizer, NamesWhatItDoesNotDo) {
  EXPECT_THAT(refusal({{"normalizer", {{"type", "Lowercase"}}}}),
              HasSubstr("normalizer.type: normalizer 'Lowercase' is not supported"));
  EXPECT_THAT(refusal(json::parse(R"({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"},
      {"type": "Replace", "pattern": {"Regex": "a"}, "content": "b"}]}})")),
              HasSubstr("normalizer.normalizers[1].pattern: only a fixed String"));
  EXPECT_THAT(refusal({{"pre_tokenizer", {{"type", "BertPreTokenizer"}}}}),
              HasSubstr("pre_tokenizer.type: pre-tokenizer 'BertPreTokenizer' is not supported"));
  EXPECT_THAT(refusal(json::parse(R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"},
      {"type": "Digits"}]}})")),
              HasSubstr("pre_tokenizer.pretokenizers[1].type: step 'Digits' after ByteLevel is not supported"));
  const auto split = [&](const char* pattern, const char* behavior) {
    return refusal(
        {{"pre_tokenizer", {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", behavior}, {"invert", false}}}});
  };
  EXPECT_THAT(split("(a", "Isolated"),
              HasSubstr("pre_tokenizer.pattern: pattern '(a' does not compile; missing closing parenthesis"));
  EXPECT_THAT(split("\\w+", "Isolated"), HasSubstr("'\\w' is not supported in a pattern; found '\\w+'"));
  EXPECT_THAT(split("[[:alpha:]]", "Isolated"), HasSubstr("POSIX classes"));
  EXPECT_THAT(split("a", "Joined"), HasSubstr("pre_tokenizer.behavior: 'Joined' is not supported"));
  EXPECT_THAT(refusal({{"model", {{"type", "Unigram"}}}}),
              HasSubstr("model.type: model 'Unigram' is not supported; expected BPE"));
  EXPECT_THAT(refusal({{"model", {{"dropout", 0.1}}}}), HasSubstr("model.dropout: 0.1 is not supported"));
  EXPECT_THAT(refusal({{"model", {{"end_of_word_suffix", "</w>"}}}}),
              HasSubstr("model.end_of_word_suffix: \"</w>\" is not supported"));
  EXPECT_THAT(refusal({{"model", {{"unk_token", "<none>"}}}}), HasSubstr("model.unk_token: '<none>' is not in the vocabulary"));
  EXPECT_THAT(refusal({{"model", {{"merges", {"t h", "q z"}}}}}),
              HasSubstr("model.merges[1]: token 'qz' is not in the vocabulary"));
  EXPECT_THAT(refusal({{"model", {{"merges", {"th"}}}}}),
              HasSubstr("model.merges[0]: expected two tokens with a space between; found 'th'"));
  EXPECT_THAT(refusal({{"post_processor", {{"type", "BertProcessing"}}}}),
              HasSubstr("post-processor 'BertProcessing' is not supported"));
  EXPECT_THAT(
      refusal(json::parse(R"({"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}},
      {"Sequence": {"id": "A"}}], "special_tokens": {}}})")),
      HasSubstr("post_processor.special_tokens: '<s>' of the template is missing"));
  EXPECT_THAT(
      refusal(json::parse(R"({"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}},
      {"Sequence": {"id": "A"}}], "special_tokens": {"<s>": {"ids": [9999]}}}})")),
      HasSubstr("post_processor: no token has id 9999"));
  EXPECT_THAT(refusal({{"decoder", {{"type", "WordPiece"}}}}), HasSubstr("decoder.type: decoder 'WordPiece' is not supported"));
  EXPECT_THAT(refusal({{"decoder", nullptr}}), HasSubstr("decoder: null is not supported"));
  EXPECT_THAT(refusal(json::parse(R"({"added_tokens": [{"id": 7, "content": "<s>"}]})")),
              HasSubstr("added_tokens[0]: token '<s>' has id 7, but id 1 in the vocabulary"));
  EXPECT_THAT(refusal(json::parse(R"({"added_tokens": [{"id": 1, "content": "<x>"}]})")),
              HasSubstr("added_tokens[0]: id 1 stands for '<s>' already; found '<x>'"));
  EXPECT_THAT(refusal({{"model", {{"vocab", {{"a", 0}, {"b", 0}}}}}}),
              HasSubstr("model.vocab: tokens 'a' and 'b' have the same id 0"));
  EXPECT_THAT(refusal({{"model", {{"vocab", {{"a", -1}}}}}}), HasSubstr("model.vocab['a']: id -1 is out of range"));
  EXPECT_THAT(refusal({{"model", {{"vocab", 3}}}}), HasSubstr("model.vocab: number; expected an object of tokens and ids"));
  EXPECT_THAT(refusal({{"normalizer", 3}}), HasSubstr("tokenizer.json: not a tokenizer file of the expected form"));
  EXPECT_THAT(message_of([] { Tokenizer::from_json("{\"model\": ", ""); }), HasSubstr("tokenizer.json: not a tokenizer file"));
  EXPECT_THAT(refusal(json::object(), R"({"chat_template": 3})"), HasSubstr("chat_template is number; expected a string"));
}

}  // namespace
}  // namespace cmoe

// Published ids of published vocabularies; skipped where the shared data are not there.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>
#include <unordered_map>

#include "data/byte_level.h"
#include "data/load_tokenizer.h"
#include "data/support.h"
#include "data/text.h"
#include "data/tokenizer.h"

namespace cmoe {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

class Vectors : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = find_shared_data();
    if (folder_.empty()) GTEST_SKIP() << "no shared data: set CMOE_SHARED_DATA";
    folder_ += "/tokenizer";
  }

  std::string unpacked(const std::string& name) const { return read_text(folder_ + "/" + name, TextFormat::plain)[0]; }

  /// llama.cpp's vectors: texts and ids of one vocabulary, without BOS.
  void expect_vectors(const Tokenizer& tokenizer, const std::string& name) const {
    const std::string base = folder_ + "/vectors/ggml-vocab-" + name + ".gguf";
    const std::string texts = read_whole(base + ".inp");
    std::istringstream lines(read_whole(base + ".out"));
    const std::string separator = "\n__ggml_vocab_test__\n";
    int count = 0;
    for (size_t begin = 0; begin <= texts.size(); ++count) {
      const size_t end = std::min(texts.find(separator, begin), texts.size());
      std::string line;
      std::getline(lines, line);  // the last text is empty and has no line
      std::istringstream numbers(line);
      const Ids expected{std::istream_iterator<int32_t>(numbers), {}};
      const std::string text = texts.substr(begin, end - begin);
      EXPECT_EQ(tokenizer.encode(text, {.add_special = false}), expected) << name << " text " << count << ": " << text;
      begin = end + separator.size();
    }
    EXPECT_EQ(count, 47);
  }

  /// 293 texts in 28 languages with the ids of JavaScript tokenizers.
  void expect_extended(const Tokenizer& tokenizer, const std::string& key) const {
    std::istringstream lines(unpacked("vectors-extended.jsonl.gz"));
    int count = 0;
    for (std::string line; std::getline(lines, line); ++count) {
      const json row = json::parse(line);
      EXPECT_EQ(tokenizer.encode(row["text"].get<std::string>(), {.add_special = false, .parse_special = false}),
                row[key].get<Ids>())
          << key << ": " << row["text"].get<std::string>().substr(0, 200);
    }
    EXPECT_EQ(count, 293);
  }

  std::string folder_;
};

TEST_F(Vectors, Gpt2FromVocabAndMerges) {
  GgufTokenizerData data;
  data.model = "gpt2";
  data.pre = "gpt-2";
  const json vocab = json::parse(unpacked("gpt2/vocab.json.gz"));
  data.tokens.resize(vocab.size());
  for (const auto& [token, id] : vocab.items()) data.tokens[id.get<size_t>()] = token;
  std::istringstream lines(unpacked("gpt2/merges.txt.gz"));
  for (std::string line; std::getline(lines, line);) data.merges.push_back(line);
  const Tokenizer tokenizer = Tokenizer::from_gguf(data);
  expect_vectors(tokenizer, "gpt-2");
  expect_extended(tokenizer, "gpt2");
}

TEST_F(Vectors, Gpt2FromGguf) { expect_vectors(load_tokenizer(folder_ + "/gpt2/ggml-vocab-gpt-2.gguf", "gpt-2"), "gpt-2"); }

TEST_F(Vectors, QwenFromTokenizerJson) {
  const Tokenizer tokenizer = Tokenizer::from_json(unpacked("qwen/tokenizer.json.gz"), "");
  expect_vectors(tokenizer, "qwen2");
  expect_extended(tokenizer, "qwen2");
}

std::string from_base64(const std::string& text) {
  std::string bytes;
  uint32_t bits = 0;
  int held = 0;
  for (char c : text) {
    const int value = c >= 'A' && c <= 'Z'   ? c - 'A'
                      : c >= 'a' && c <= 'z' ? c - 'a' + 26
                      : c >= '0' && c <= '9' ? c - '0' + 52
                      : c == '+'             ? 62
                      : c == '/'             ? 63
                                             : -1;
    if (value < 0) break;
    bits = bits << 6 | static_cast<uint32_t>(value);
    held += 6;
    if (held >= 8) {
      held -= 8;
      bytes += static_cast<char>(bits >> held & 0xff);
    }
  }
  return bytes;
}

/// The tiktoken file has ranks of tokens; merges are all pairs of tokens that make a token, in order of its rank.
TEST_F(Vectors, Llama3FromRanks) {
  GgufTokenizerData data;
  data.model = "gpt2";
  data.pre = "llama-bpe";
  data.add_bos = false;
  std::vector<std::string> bytes;
  std::unordered_map<std::string, size_t> ranks;
  std::istringstream lines(unpacked("llama3/tokenizer.model.gz"));
  for (std::string line; std::getline(lines, line);) {
    bytes.push_back(from_base64(line));
    ranks[bytes.back()] = ranks.size();
    data.tokens.push_back(to_byte_level(bytes.back()));
  }
  ASSERT_EQ(bytes.size(), 128000u);
  for (const auto& token : bytes) {
    std::vector<std::pair<size_t, size_t>> pairs;
    for (size_t cut = 1; cut < token.size(); ++cut) {
      const auto left = ranks.find(token.substr(0, cut));
      const auto right = ranks.find(token.substr(cut));
      if (left != ranks.end() && right != ranks.end()) pairs.emplace_back(left->second, right->second);
    }
    std::sort(pairs.begin(), pairs.end());
    for (const auto& [left, right] : pairs) data.merges.push_back(data.tokens[left] + " " + data.tokens[right]);
  }
  const Tokenizer tokenizer = Tokenizer::from_gguf(data);
  expect_vectors(tokenizer, "llama-bpe");
  expect_extended(tokenizer, "llama3");
}

TEST_F(Vectors, Llama2FromGguf) {
  const Tokenizer tokenizer = load_tokenizer(folder_ + "/llama2/ggml-vocab-llama-spm.gguf");
  expect_vectors(tokenizer, "llama-spm");
  expect_extended(tokenizer, "llama2");
}

}  // namespace
}  // namespace cmoe

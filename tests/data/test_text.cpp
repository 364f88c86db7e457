#include <gmock/gmock.h>
#include <zlib.h>

#include <nlohmann/json.hpp>

#include "data/load_tokenizer.h"
#include "data/support.h"
#include "data/text.h"

namespace cmoe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string gzip(const std::string& text) {
  const ScratchFolder folder;
  const std::string path = folder.path() + "/packed";
  gzFile file = gzopen(path.c_str(), "wb");
  gzwrite(file, text.data(), static_cast<unsigned>(text.size()));
  gzclose(file);
  return read_whole(path);
}

TEST(Text, PlainIsByteForByte) {
  const ScratchFolder folder;
  const std::string text = " a\r\n\n b\t\u00e9 ";
  EXPECT_THAT(read_text(folder.write("a.txt", text)), ElementsAre(text));
  EXPECT_THAT(read_text(folder.write("a.txt.gz", gzip(text))), ElementsAre(text));
  EXPECT_THAT(read_text(folder.write("packed_without_suffix", gzip(text))), ElementsAre(text));
  std::string large;  // several blocks of the reader
  for (int i = 0; large.size() < (3u << 20) + 17; ++i) large += std::to_string(i) + ' ';
  EXPECT_THAT(read_text(folder.write("b.gz", gzip(large))), ElementsAre(large));
}

TEST(Text, FormatFollowsTheName) {
  EXPECT_EQ(text_format_of("/data/c4.jsonl.gz"), TextFormat::jsonl);
  EXPECT_EQ(text_format_of("c4.json"), TextFormat::jsonl);
  EXPECT_EQ(text_format_of("wikitext2.test.raw.gz"), TextFormat::wikitext);
  EXPECT_EQ(text_format_of("x/wiki.test.raw"), TextFormat::wikitext);
  EXPECT_EQ(text_format_of("wikitext/book.txt"), TextFormat::plain);
  EXPECT_EQ(text_format_of("notes.wikitext"), TextFormat::plain);
  EXPECT_EQ(parse_text_format("auto"), TextFormat::automatic);
  EXPECT_EQ(parse_text_format("jsonl"), TextFormat::jsonl);
  EXPECT_THAT(message_of([] { parse_text_format("csv"); }),
              HasSubstr("text format 'csv' is unknown; expected auto, plain, jsonl"));
}

TEST(Text, WikitextRowsAreJoinedAsGptqDoes) {
  EXPECT_EQ(join_wikitext(" \n = Title = \n \n\nText .\nlast"), "\n\n = Title = \n\n\n\n\n\n\nText .\n\n\nlast\n");
  const ScratchFolder folder;
  EXPECT_THAT(read_text(folder.write("wikitext.raw", "a\n \nb\n")), ElementsAre("a\n\n\n\n\nb\n"));
  EXPECT_THAT(read_text(folder.write("wikitext.raw", "a\n \nb\n"), TextFormat::plain), ElementsAre("a\n \nb\n"));
}

TEST(Text, JsonLinesGiveDocuments) {
  const ScratchFolder folder;
  EXPECT_THAT(
      read_text(folder.write("a.jsonl", "{\"text\": \"one\\n\", \"url\": 1}\n\n{\"text\": \"\"}\r\n{\"text\": \"t\\u00e9\"}")),
      ElementsAre("one\n", "t\u00e9"));
  const auto refusal = [&](const std::string& content) {
    return message_of([&] { read_text(folder.write("b.jsonl", content)); });
  };
  EXPECT_THAT(refusal("{\"text\": \"a\"}\n{\"txt\": \"b\", \"url\": 1}\n"),
              HasSubstr("b.jsonl: line 2 has no string \"text\"; found keys txt, url"));
  EXPECT_THAT(refusal("{\"text\": 3}"), HasSubstr("line 1 has no string \"text\""));
  EXPECT_THAT(refusal("{\"text\": \"a\"}\nplain words"), HasSubstr("line 2 is not a JSON object"));
  EXPECT_THAT(refusal("{\"text\": \"\"}\n"), HasSubstr("b.jsonl: holds no text"));
}

TEST(Text, RefusesWhatIsNoText) {
  const ScratchFolder folder;
  const auto refusal = [&](const std::string& name, const std::string& content) {
    return message_of([&] { read_text(folder.write(name, content)); });
  };
  EXPECT_THAT(refusal("a.txt", "0123456789\xff"), HasSubstr("a.txt: byte 10 is not UTF-8"));
  EXPECT_THAT(refusal("a.txt.gz", gzip("0123\xc3")), HasSubstr("a.txt.gz: byte 4 is not UTF-8"));
  EXPECT_THAT(refusal("empty.txt", ""), HasSubstr("empty.txt: holds no text"));
  EXPECT_THAT(refusal("blank.txt", " \n\n"), HasSubstr("blank.txt: holds no text"));
  EXPECT_THAT(refusal("wikitext.raw", " \n \n"), HasSubstr("holds no text"));
  std::string packed = gzip(std::string(5000, 'a') + "bcd");
  EXPECT_THAT(refusal("cut.gz", packed.substr(0, packed.size() - 9)), HasSubstr("cut.gz: damaged after"));
  packed[packed.size() - 6] ^= 1;  // the checksum
  EXPECT_THAT(refusal("bad.gz", packed), HasSubstr("bad.gz: damaged after"));
  EXPECT_THAT(message_of([&] { read_text(folder.path() + "/none"); }), HasSubstr("none: cannot be opened; No such file"));
  EXPECT_THAT(message_of([&] { read_text(folder.path()); }), HasSubstr("is a folder; expected a text file"));
}

TEST(Text, DocumentsAreEncodedApartWithEosBetween) {
  const auto golden = nlohmann::json::parse(read_whole(CMOE_SOURCE_DIR "/tests/data/tokenizer_golden.json"));
  const std::string spec = golden["base"].dump();
  const Tokenizer marked = Tokenizer::from_json(spec, R"({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true})");
  const Tokenizer plain = Tokenizer::from_json(spec, "");
  const std::vector<std::string> documents = {"the ship", " sails", "the"};
  std::vector<int32_t> with, without;
  for (const auto& document : documents) {
    const auto ids = plain.encode(document);
    without.insert(without.end(), ids.begin(), ids.end());
    if (!with.empty()) with.push_back(2);
    with.push_back(1);
    with.insert(with.end(), ids.begin(), ids.end());
  }
  EXPECT_EQ(encode_documents(marked, documents), with);
  EXPECT_EQ(encode_documents(plain, documents), without);
}

TEST(Text, WikitextTrainHeadHasTheReferencesTokens) {
  const std::string shared = find_shared_data();
  const char* model = std::getenv("CMOE_DEMO_MODEL");
  if (shared.empty() || model == nullptr) GTEST_SKIP() << "needs the shared data and CMOE_DEMO_MODEL, the demo's GGUF file";
  const auto documents = read_text(shared + "/text/wikitext2.train-head.txt.gz");
  EXPECT_EQ(encode_documents(load_tokenizer(model), documents).size(), 233556u);
}

}  // namespace
}  // namespace cmoe

// What the program tells of files and of the machine.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "support/program.h"
#include "support/tiny_gguf.h"
#include "support/tiny_model.h"

namespace cmoe {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

// `words` after `cmoe inspect`.
std::string table_of(std::vector<std::string> words) {
  words.insert(words.begin(), "inspect");
  const ProgramResult result = run_cmoe(words);
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.err, "");
  return result.out;
}

json json_of(const std::string& path) {
  const std::string text = table_of({path, "--json"});
  EXPECT_EQ(table_of({"--json", path}), text);
  return json::parse(text);
}

// A line of the table, whatever the spaces between.
auto has_row(const std::string& name, const std::string& value) { return ContainsRegex("\n" + name + " +" + value + "\n"); }

class Inspect : public ::testing::Test {
 protected:
  TemporaryDirectory folder_;
};

TEST_F(Inspect, DenseFolder) {
  const std::string path = fixture("tiny-llama");
  EXPECT_THAT(table_of({path}),
              AllOf(HasSubstr(path), has_row("architecture", "llama .safetensors."), has_row("layers", "3"),
                    has_row("hidden size", "64"), has_row("FFN neurons per layer", "160"),
                    has_row("attention heads", "4 of 16, 2 for keys and values"), has_row("vocabulary", "384, tied head"),
                    has_row("parameters", "154,048"), has_row("BF16", "29 +154,048 +300.9 KiB")));
  const json d = json_of(path);
  EXPECT_EQ(d["format"], "safetensors");
  EXPECT_EQ(d["config"]["num_hidden_layers"], 3);
  EXPECT_EQ(d["parameters"]["total"], 154048);
  EXPECT_EQ(d["stored_bytes"], 2 * 154048);
  EXPECT_FALSE(d.contains("experts"));
}

TEST_F(Inspect, Gguf) {
  const std::string path = folder_ / "tiny.gguf";
  write_text(path, tiny_llama_gguf());
  EXPECT_THAT(table_of({path}), AllOf(has_row("architecture", "llama .gguf."), has_row("parameters", "154,048"),
                                      has_row("F32", "29 +154,048 +601.8 KiB")));
  const json d = json_of(path), folder = json_of(fixture("tiny-llama"));
  EXPECT_EQ(d["format"], "gguf");
  EXPECT_EQ(d["parameters"], folder["parameters"]);
  for (const char* key : {"hidden_size", "intermediate_size", "rope_theta", "num_key_value_heads", "vocab_size"})
    EXPECT_EQ(d["config"][key], folder["config"][key]) << key;
}

TEST_F(Inspect, CarvedFolder) {
  const std::string path = fixture("tiny-cmoe-threshold");
  EXPECT_THAT(table_of({path}),
              AllOf(has_row("architecture", "cmoe .safetensors."), has_row("experts", "S3A3E8, 8 neurons each"),
                    has_row("router", "linear, threshold"), has_row("FFN neurons active", "75.0 %")));
  const json d = json_of(path);
  EXPECT_EQ(d["experts"], "S3A3E8");
  EXPECT_EQ(d["active_fraction"], 0.75);
  EXPECT_EQ(d["config"]["router_selector"], "threshold");
  EXPECT_EQ(json_of(fixture("tiny-cmoe-static"))["format"], "safetensors");
}

TEST_F(Inspect, Profile) {
  const std::string path = folder_ / "p.h5";
  const ProgramResult made = run_cmoe({"profile", "--model", fixture("tiny-llama"), "--dataset", fixture("text/train.txt"),
                                       "--samples", "3", "--seq-len", "20", "--k-act", "7", "--quiet", "--out", path},
                                      {.ranks = 2, .environment = {}, .folder = "", .kill_when_exists = ""});
  ASSERT_EQ(made.code, 0) << made.err;
  EXPECT_THAT(table_of({path}), AllOf(has_row("layers x neurons", "3 x 160"), has_row("tokens", "3 sequences of 20"),
                                      has_row("markers per token and layer", "7"), ContainsRegex("f32 on 2 rank.s."),
                                      ContainsRegex("\ntrain.txt [0-9a-f]{64}\n")));
  const json d = json_of(path);
  EXPECT_EQ(d["format"], "profile");
  EXPECT_EQ(d["k_act"], 7);
  EXPECT_EQ(d["ranks"], 2);
  EXPECT_EQ(d["model"], fixture("tiny-llama"));
  EXPECT_EQ(d["model_hash"].get<std::string>().size(), 64u);
  EXPECT_THAT(d["options"].get<std::string>(), HasSubstr("seq-len = 20\n"));
}

TEST_F(Inspect, Refusals) {
  const auto refused = [](std::vector<std::string> words) {
    words.insert(words.begin(), "inspect");
    const ProgramResult result = run_cmoe(words);
    EXPECT_EQ(result.code, 2) << result.err;
    EXPECT_EQ(result.out, "");
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    return result.err;
  };
  EXPECT_THAT(refused({}), HasSubstr("argument <path>: missing; expected what to show"));
  EXPECT_THAT(refused({"a", "b"}), HasSubstr("argument 'b': not expected"));
  EXPECT_THAT(refused({"a", "--jsno"}), HasSubstr("option --jsno: unknown; did you mean --json?"));
  EXPECT_THAT(refused({folder_ / "absent"}), HasSubstr("absent: no such file or folder; expected a Hugging Face folder"));
  EXPECT_THAT(refused({folder_.path()}), HasSubstr("has no config.json"));
  EXPECT_THAT(refused({fixture("text/train.txt")}), HasSubstr("train.txt: does not begin with the letters GGUF"));
  EXPECT_THAT(refused({fixture("tiny-llama/model.safetensors")}), HasSubstr("is a lone safetensors file; give the folder"));
  const std::string gguf = tiny_llama_gguf();
  write_text(folder_ / "cut.gguf", gguf.substr(0, gguf.size() / 2));
  EXPECT_THAT(refused({folder_ / "cut.gguf"}), HasSubstr("cut.gguf: "));
  write_text(folder_ / "text.h5", "this is text");
  EXPECT_THAT(refused({folder_ / "text.h5"}), HasSubstr("text.h5: "));
}

TEST(Doctor, SaysWhatTheMachineOffers) {
  const ProgramResult result = run_cmoe({"doctor"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(has_row("threads per rank", "1"), ContainsRegex("\nMPI +Open MPI"),
                                ContainsRegex("\nfiles +HDF5 1"), ContainsRegex("\nbackend +CPU"), HasSubstr("oneDNN")));
  EXPECT_THAT(result.out, ContainsRegex("\nNCCL +(built without NCCL|[0-9.]+)\n"));
  EXPECT_THAT(result.out, ContainsRegex("\nGPU +(none: .+|.+, compute capability .+)\n"));
}

}  // namespace
}  // namespace cmoe

// Bad input to the program: one line that says where and what, exit code 2, nothing half-written.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "support/program.h"
#include "support/tiny_gguf.h"
#include "support/tiny_model.h"

namespace cmoe {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;
using Tensors = std::map<std::string, Tensor>;
using nlohmann::json;

const std::string kModel = fixture("tiny-llama"), kText = fixture("text/train.txt");

class Refusals : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TemporaryDirectory;
    const ProgramResult result = run_cmoe(profile_of(kModel, kText, profile()));
    ASSERT_EQ(result.code, 0) << result.err;
  }
  static void TearDownTestSuite() { delete folder_; }
  static std::string profile() { return *folder_ / "good.h5"; }
  static std::string in_folder(const std::string& name) { return *folder_ / name; }

  static std::vector<std::string> profile_of(const std::string& model, const std::string& text, const std::string& out) {
    return {"profile", "--model", model, "--dataset", text, "--samples", "2", "--seq-len", "32", "--quiet", "--out", out};
  }
  static std::vector<std::string> carve_of(const std::string& model, const std::string& from,
                                           const std::vector<std::string>& more = {}) {
    std::vector<std::string> words{"carve", "--model",           model,     "--profile", from,
                                   "--out", in_folder("carved"), "--quiet", "--experts", "S3A3E8"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  // Every part must be in the one line on stderr, and no file may be left.
  template <class... Parts>
  static void refused(const std::vector<std::string>& command, const Parts&... parts) {
    std::vector<std::string> before = listing();
    const ProgramResult result = run_cmoe(command);
    EXPECT_EQ(result.code, 2) << result.err;
    for (const std::string& part : {std::string(parts)...}) EXPECT_THAT(result.err, HasSubstr(part));
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_EQ(listing(), before);
  }
  // A model that profile cannot read.
  template <class... Parts>
  static void bad_model(const std::string& model, const Parts&... parts) {
    refused(profile_of(model, kText, in_folder("never.h5")), parts...);
  }
  static std::string variant(const std::string& name, const std::function<void(Tensors&, json&)>& change) {
    write_tiny_variant(in_folder(name), change);
    return in_folder(name);
  }
  static std::vector<std::string> listing() {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_->path())) names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
  }

  static inline TemporaryDirectory* folder_ = nullptr;
};

TEST_F(Refusals, Commands) {
  const ProgramResult unknown = run_cmoe({"crave"});
  EXPECT_EQ(unknown.code, 2);
  EXPECT_THAT(unknown.err, HasSubstr("'crave': unknown"));
  EXPECT_THAT(unknown.err, HasSubstr("carve"));
  const ProgramResult none = run_cmoe({});
  EXPECT_EQ(none.code, 2);
  EXPECT_THAT(none.err, HasSubstr("usage"));
  EXPECT_EQ(run_cmoe({"--help"}).code, 0);
  EXPECT_THAT(run_cmoe({"carve", "--help"}).out, HasSubstr("--experts"));
  EXPECT_THAT(run_cmoe({"--version"}).out, HasSubstr("cmoe "));
}

TEST_F(Refusals, Options) {
  refused(carve_of(kModel, profile(), {"--recepi", "best"}), "recepi", "--recipe");
  refused({"profile", "--model", kModel, "--out", in_folder("x.h5")}, "--dataset");
  refused({"carve", "--model", kModel, "--profile", profile(), "--out", in_folder("x")}, "--experts");
  refused(carve_of(kModel, profile(), {"--recipe", "beste"}), "recipe", "beste", "static-refit");
  refused(carve_of(kModel, profile(), {"--marker", "cooked"}),
          "marker: unknown value 'cooked'; expected one of raw, normalized");
  refused(carve_of(kModel, profile(), {"--selector", "lottery"}), "selector: unknown value 'lottery'", "topk, threshold");
  refused(carve_of(kModel, profile(), {"--compensation", "all"}), "compensation: unknown value 'all'", "none, mean, refit");
  refused(carve_of(kModel, profile(), {"--shard-mb", "0"}), "shard-mb", "0");
  refused(carve_of(kModel, profile(), {"--dtype", "f8"}), "dtype", "f8", "bf16");
  refused(carve_of(kModel, profile(), {"--seed", "many"}), "seed", "many");
  refused({"evaluate", "--model", kModel, "--dataset", kText}, "expected --perplexity");
}

TEST_F(Refusals, ExpertsThatDoNotDivide) {
  std::vector<std::string> command = carve_of(kModel, profile());
  const auto experts = [&](const std::string& text) {
    command.back() = text;
    return command;
  };
  refused(experts("S3A3E7"), "7 experts do not divide the 160 neurons", "nearest that do: E8");
  refused(experts("S3A3E9"), "E8 or E10");
  refused(experts("S3A6E8"), "3 shared and 6 active are more than the 8 experts");
  refused(experts("S0A0E8"), "at least one expert must run");
  refused(experts("three"), "expected SxAyEz");
}

TEST_F(Refusals, ProfilesOfAnotherModel) {
  const std::string deeper = variant("deeper", [](Tensors& tensors, json& config) {
    config["num_hidden_layers"] = 2;
    std::erase_if(tensors, [](const auto& entry) { return entry.first.starts_with("model.layers.2."); });
  });
  refused(carve_of(deeper, profile()), "good.h5: is of another model: 3 layers of 160 neurons", "has 2 of 160");
  // Fine-tuned with its norms frozen: every weight of one matrix moves by a little.
  const std::string base = variant("base", [](Tensors&, json&) {});
  const std::string base_profile = in_folder("base.h5");
  const ProgramResult made = run_cmoe(profile_of(base, kText, base_profile));
  ASSERT_EQ(made.code, 0) << made.err;
  const std::string tuned = variant("tuned", [](Tensors& tensors, json&) {
    for (float& weight : tensors["model.layers.1.mlp.down_proj.weight"].span<float>()) weight += 1e-4f;
  });
  refused(carve_of(tuned, base_profile), "base.h5: is of another model with the same shape", "fingerprint", "tuned has");
  refused(carve_of(base, profile()), "good.h5: is of another model with the same shape");
  refused(carve_of(fixture("tiny-cmoe-static"), profile()), "is carved already; carve takes a dense model");
}

TEST_F(Refusals, BrokenProfiles) {
  const std::string whole = read_text(profile());
  for (const size_t size : {whole.size() - 1, whole.size() / 2, size_t{600}, size_t{0}}) {
    const std::string cut = in_folder("cut.h5");
    write_text(cut, whole.substr(0, size));
    refused(carve_of(kModel, cut), "cut.h5: is not a whole HDF5 file");
  }
  write_text(in_folder("text.h5"), "this is text");
  refused(carve_of(kModel, in_folder("text.h5")), "text.h5");
  refused(carve_of(kModel, in_folder("absent.h5")), "absent.h5");
}

TEST_F(Refusals, Texts) {
  const auto text = [&](const std::string& name, const std::string& content) {
    write_text(in_folder(name), content);
    return profile_of(kModel, in_folder(name), in_folder("never.h5"));
  };
  refused(text("latin1.txt", "caf\xe9 au lait, again and again and again"), "latin1.txt: byte 3 is not UTF-8");
  refused(text("empty.txt", ""), "empty.txt: holds no text");
  refused(text("short.txt", "Two words."), "tokens are too few for a random window of 32");
  refused(text("broken.jsonl", "{\"text\": \"fine\"}\n{\"text\": "), "broken.jsonl", "2");
  refused(profile_of(kModel, in_folder("absent.txt"), in_folder("never.h5")), "absent.txt");
  write_text(in_folder("offsets"), "0\nnine\n");
  std::vector<std::string> command = profile_of(kModel, kText, in_folder("never.h5"));
  command.insert(command.end(), {"--window-offsets", in_folder("offsets")});
  refused(command, "offsets", "nine");
  write_text(in_folder("offsets"), "0\n99999999\n");
  refused(command, "offsets", "99999999");
}

TEST_F(Refusals, Weights) {
  const std::string cut = variant("truncated", [](Tensors&, json&) {});
  fs::resize_file(cut + "/model.safetensors", fs::file_size(cut + "/model.safetensors") - 100);
  bad_model(cut, "model.safetensors");
  const std::string header = variant("header", [](Tensors&, json&) {});
  write_text(header + "/model.safetensors", std::string("\xff\xff\xff\xff\xff\xff\xff\x7f{}", 10));
  bad_model(header, "model.safetensors");
  bad_model(variant("missing", [](Tensors& tensors, json&) { tensors.erase("model.layers.1.mlp.up_proj.weight"); }),
            "model.layers.1.mlp.up_proj.weight");
  bad_model(variant("shape",
                    [](Tensors& tensors, json&) {
                      tensors["model.layers.2.mlp.down_proj.weight"] = Tensor::zeros(DType::f32, {64, 159});
                    }),
            "model.layers.2.mlp.down_proj.weight", "[64, 159]", "[64, 160]");
  const std::string shards = in_folder("shards");
  fs::copy(fixture("tiny-llama-scaled"), shards);
  fs::copy(kModel + "/tokenizer.json", shards + "/tokenizer.json");
  fs::remove(shards + "/model-00002-of-00002.safetensors");
  bad_model(shards, "model-00002-of-00002.safetensors");
  const std::string empty = in_folder("empty-folder");
  fs::create_directory(empty);
  bad_model(empty, "config.json");
  bad_model(in_folder("nowhere"), "nowhere");
}

TEST_F(Refusals, WeightsThatAreNoNumbers) {
  const std::string nan = variant("nan", [](Tensors& tensors, json&) {
    tensors["model.layers.1.mlp.gate_proj.weight"].data<float>()[777] = std::numeric_limits<float>::quiet_NaN();
  });
  bad_model(nan, "model.layers.1.mlp.gate_proj.weight", "777");
  const std::string infinite = variant("infinite", [](Tensors& tensors, json&) {
    tensors["model.layers.0.self_attn.q_proj.weight"].data<float>()[3] = std::numeric_limits<float>::infinity();
  });
  bad_model(infinite, "model.layers.0.self_attn.q_proj.weight");
}

TEST_F(Refusals, ConfigsThatAskForMore) {
  const auto with = [&](const std::string& field, const json& value) {
    return variant("config-" + field, [&](Tensors&, json& config) { config[field] = value; });
  };
  bad_model(with("hidden_act", "gelu"), "config.json", "hidden_act", "gelu");
  bad_model(with("attention_bias", true), "config.json", "attention_bias");
  bad_model(with("mlp_bias", true), "config.json", "mlp_bias");
  bad_model(with("model_type", "mamba"), "config.json", "model_type", "mamba");
  bad_model(with("quantization_config", json{{"quant_method", "gptq"}}), "config.json", "quantization_config");
  bad_model(with("num_attention_heads", 5), "config.json");
}

TEST_F(Refusals, QuantisationsThatAreNotRead) {
  std::string gguf = tiny_llama_gguf();
  const std::string name = "blk.1.ffn_up.weight";
  // Behind the name stand the number of dimensions, the dimensions and the type.
  gguf[gguf.find(name) + name.size() + 4 + 2 * 8] = 12;  // Q4_K
  write_text(in_folder("q4k.gguf"), gguf);
  bad_model(in_folder("q4k.gguf"), "q4k.gguf", name, "Q4_K");
  write_text(in_folder("cut.gguf"), gguf.substr(0, 40));
  bad_model(in_folder("cut.gguf"), "cut.gguf");
}

// Rank 0 alone speaks for all, and the exit code is the same.
TEST_F(Refusals, OnSeveralRanksTheLineComesOnce) {
  const ProgramResult result = run_cmoe(carve_of(kModel, in_folder("absent.h5")), {.ranks = 3});
  EXPECT_EQ(result.code, 2) << result.err;
  const size_t first = result.err.find("absent.h5: no such file");
  EXPECT_NE(first, std::string::npos) << result.err;
  EXPECT_EQ(result.err.find("absent.h5", first + 1), std::string::npos) << result.err;
}

}  // namespace
}  // namespace cmoe

// cmoe carve through the program: what it writes, on any number of ranks.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <sstream>

#include "base/sha256.h"
#include "model/describe.h"
#include "support/program.h"
#include "support/tiny_gguf.h"
#include "support/tiny_model.h"

namespace cmoe {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

constexpr int64_t kLayers = 3, kNeurons = 160;
const std::string kModel = fixture("tiny-llama");

// [rows, columns] of a .npy file that `cmoe logits` wrote; ids as f32 too.
std::vector<float> read_npy(const std::string& path) {
  const std::string bytes = read_text(path);
  uint16_t header = 0;
  std::memcpy(&header, bytes.data() + 8, 2);
  std::vector<float> values((bytes.size() - 10 - header) / 4);
  std::memcpy(values.data(), bytes.data() + 10 + header, values.size() * 4);
  return values;
}

// Every file of a folder by name, with its SHA-256.
std::map<std::string, std::string> hashes(const std::string& folder) {
  std::map<std::string, std::string> result;
  for (const auto& entry : fs::directory_iterator(folder)) result[entry.path().filename()] = sha256_of_file(entry.path());
  return result;
}

class CarveJob : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TemporaryDirectory;
    const ProgramResult result = run_cmoe({"profile", "--model", kModel, "--dataset", fixture("text/train.txt"), "--samples",
                                           "3", "--seq-len", "192", "--quiet", "--out", profile()});
    ASSERT_EQ(result.code, 0) << result.err;
  }
  static void TearDownTestSuite() { delete folder_; }
  static std::string profile() { return *folder_ / "profile.h5"; }

  static std::vector<std::string> command(const std::string& experts, const std::string& recipe, const std::string& out,
                                          const std::vector<std::string>& more = {}) {
    std::vector<std::string> words{"carve", "--model",  kModel, "--profile", profile(), "--experts",
                                   experts, "--recipe", recipe, "--quiet",   "--out",   out};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  static std::string carve(const std::string& experts, const std::string& recipe, const std::vector<std::string>& more = {},
                           const ProgramOptions& options = {}) {
    const std::string out = *folder_ / (experts + "-" + recipe + std::to_string(++count_));
    const ProgramResult result = run_cmoe(command(experts, recipe, out, more), options);
    EXPECT_EQ(result.code, 0) << recipe << ": " << result.err;
    return out;
  }
  static std::vector<float> logits(const std::string& model) {
    const std::string out = *folder_ / "logits.npy";
    const ProgramResult result = run_cmoe({"logits", "--model", model, "--text", fixture("text/valid.txt"), "--max-tokens",
                                           "60", "--quiet", "--out", out, "--ids-out", *folder_ / "ids.npy"});
    EXPECT_EQ(result.code, 0) << result.err;
    return read_npy(out);
  }
  // The neurons of every expert of a layer, by their gate rows in the dense model; the shared expert first.
  static std::vector<std::vector<int64_t>> neurons_of(const Checkpoint& carved, int64_t layer) {
    static const Checkpoint dense = open_checkpoint(kModel);
    const std::string mlp = "model.layers." + std::to_string(layer) + ".mlp.";
    const auto rows_of = [](const Checkpoint& checkpoint, const std::string& name) {
      const Tensor tensor = checkpoint.tensors->read(name, checkpoint.tensors->shape(name), DType::f32);
      std::vector<std::vector<float>> rows;
      for (int64_t i = 0; i < tensor.dim(0); ++i) rows.emplace_back(tensor.row<float>(i), tensor.row<float>(i) + tensor.dim(1));
      return rows;
    };
    std::map<std::vector<float>, int64_t> number;
    for (const auto& row : rows_of(dense, mlp + "gate_proj.weight")) number.emplace(row, static_cast<int64_t>(number.size()));
    EXPECT_EQ(number.size(), static_cast<size_t>(kNeurons));
    std::vector<std::vector<int64_t>> experts;
    const MoeConfig& moe = *carved.config.moe;
    for (int64_t e = -1; e < moe.num_routed_experts(); ++e) {
      experts.emplace_back();
      if (e < 0 && moe.num_shared_experts == 0) continue;
      const std::string name = mlp + (e < 0 ? "shared_experts" : "experts." + std::to_string(e));
      for (const auto& row : rows_of(carved, name + ".gate_proj.weight")) experts.back().push_back(number.at(row));
      // up rows travel with gate rows
      const auto up = rows_of(carved, name + ".up_proj.weight"), dense_up = rows_of(dense, mlp + "up_proj.weight");
      for (size_t i = 0; i < up.size(); ++i) EXPECT_EQ(up[i], dense_up[static_cast<size_t>(experts.back()[i])]);
    }
    return experts;
  }

  static inline TemporaryDirectory* folder_ = nullptr;
  static inline int count_ = 0;
};

TEST_F(CarveJob, EveryRecipeDividesTheNeuronsIntoDisjointExperts) {
  for (const std::string experts : {"S3A3E8", "S2A2E8"}) {
    const int64_t shared = experts == "S3A3E8" ? 3 : 2, active = shared, m = kNeurons / 8;
    for (const std::string recipe : {"best", "paper", "authors", "random", "contiguous", "static", "flap", "static-refit"}) {
      SCOPED_TRACE(experts + " " + recipe);
      const bool routed = recipe.rfind("static", 0) != 0 && recipe != "flap";
      const Checkpoint carved = open_checkpoint(carve(experts, recipe));
      ASSERT_TRUE(carved.config.moe);
      EXPECT_EQ(carved.config.moe->moe_intermediate_size, m);
      EXPECT_EQ(carved.config.moe->num_routed_experts(), routed ? 8 - shared : 0);
      for (int64_t l = 0; l < kLayers; ++l) {
        std::set<int64_t> seen;
        int64_t count = 0;
        const auto lists = neurons_of(carved, l);
        EXPECT_EQ(static_cast<int64_t>(lists[0].size()), (routed ? shared : shared + active) * m);
        for (size_t e = 0; e < lists.size(); ++e) {
          if (e > 0) {
            EXPECT_EQ(static_cast<int64_t>(lists[e].size()), m);
          }
          EXPECT_TRUE(std::is_sorted(lists[e].begin(), lists[e].end()));
          seen.insert(lists[e].begin(), lists[e].end());
          count += static_cast<int64_t>(lists[e].size());
        }
        EXPECT_EQ(static_cast<int64_t>(seen.size()), count);
        EXPECT_EQ(count, routed ? kNeurons : (shared + active) * m);
      }
      EXPECT_NEAR(describe_checkpoint(carved)["active_fraction"].get<double>(), static_cast<double>(shared + active) / 8, 1e-9);
    }
  }
}

// Three calibration sequences: the fourth rank has none. The whole folder: weights, card, options and manifest; the working
// folders differ, the names given do not.
TEST_F(CarveJob, WritesTheSameBytesOnAnyNumberOfRanks) {
  for (const std::string recipe : {"best", "paper", "authors", "static-refit", "random"}) {
    std::map<std::string, std::string> one;
    for (int ranks : {1, 2, 3, 4}) {
      const std::string place = *folder_ / (recipe + "-on-" + std::to_string(ranks));
      fs::create_directory(place);
      const ProgramResult result = run_cmoe(command("S3A3E8", recipe, "carved"), {.ranks = ranks, .folder = place});
      ASSERT_EQ(result.code, 0) << result.err;
      const auto found = hashes(place + "/carved");
      if (ranks == 1) one = found;
      EXPECT_GE(found.size(), 10u);
      EXPECT_EQ(found, one) << recipe << " on " << ranks << " ranks";
      EXPECT_EQ(std::distance(fs::directory_iterator(place), fs::directory_iterator()), 1) << "left over beside the folder";
    }
  }
}

TEST_F(CarveJob, EveryExpertActiveWithoutCompensationIsTheDenseModel) {
  const std::vector<float> dense = logits(kModel);
  float largest = 0;
  for (float v : dense) largest = std::max(largest, std::abs(v));
  for (const std::string recipe : {"best", "paper", "authors", "random"}) {
    const std::vector<float> carved = logits(carve("S3A5E8", recipe, {"--compensation", "none"}));
    ASSERT_EQ(carved.size(), dense.size());
    for (size_t i = 0; i < dense.size(); ++i) ASSERT_NEAR(carved[i], dense[i], 1e-5 * largest) << recipe << " element " << i;
  }
}

TEST_F(CarveJob, DroppingExpertsChangesTheModel) {
  const std::vector<float> dense = logits(kModel), carved = logits(carve("S2A2E8", "paper"));
  float difference = 0;
  for (size_t i = 0; i < dense.size(); ++i) difference = std::max(difference, std::abs(dense[i] - carved[i]));
  EXPECT_GT(difference, 0.01f);
}

TEST_F(CarveJob, TheManifestNamesEveryFileWithItsHash) {
  const std::string out = carve("S3A3E8", "best");
  const nlohmann::json manifest = nlohmann::json::parse(read_text(out + "/manifest.json"));
  EXPECT_EQ(manifest["format"], "cmoe-model-1");
  std::map<std::string, std::string> listed;
  for (const auto& file : manifest["files"]) {
    listed[file["name"]] = file["sha256"];
    EXPECT_EQ(file["bytes"].get<uintmax_t>(), fs::file_size(out + "/" + file["name"].get<std::string>()));
  }
  std::map<std::string, std::string> there = hashes(out);
  there.erase("manifest.json");
  EXPECT_EQ(listed, there);
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                           "generation_config.json", "modeling_cmoe.py", "configuration_cmoe.py", "README.md", "cmoe.cfg"}) {
    EXPECT_TRUE(listed.contains(name)) << name;
  }
  EXPECT_EQ(read_text(out + "/tokenizer.json"), read_text(kModel + "/tokenizer.json"));
  const std::string card = read_text(out + "/README.md");
  for (const char* part :
       {"S3A3E8", "| recipe | best |", "active share of FFN neurons (calibration) | 0.75", "train.txt", "fingerprint"}) {
    EXPECT_THAT(card, HasSubstr(part));
  }
}

// A model of several MB with weights at random, for files of 1 MB.
TEST_F(CarveJob, SeveralFilesAndTheirIndexReadBack) {
  const std::string model = *folder_ / "wide", wide_profile = *folder_ / "wide.h5", out = *folder_ / "wide-carved";
  write_tiny_variant(model, [](std::map<std::string, Tensor>& tensors, nlohmann::json& config) {
    config["vocab_size"] = 4096;
    Tensor embedding = Tensor::zeros(DType::f32, {4096, 64});
    for (int64_t i = 0; i < embedding.size(); ++i)
      embedding.data<float>()[i] = 0.01f * static_cast<float>(i * 7919 % 1009 - 504);
    tensors["model.embed_tokens.weight"] = embedding;
  });
  ASSERT_EQ(run_cmoe({"profile", "--model", model, "--dataset", fixture("text/train.txt"), "--samples", "2", "--seq-len", "32",
                      "--quiet", "--out", wide_profile})
                .code,
            0);
  const ProgramResult result = run_cmoe({"carve", "--model", model, "--profile", wide_profile, "--experts", "S3A3E8",
                                         "--shard-mb", "1", "--recipe", "paper", "--out", out},
                                        {.ranks = 2});
  ASSERT_EQ(result.code, 0) << result.err;
  const nlohmann::json index = nlohmann::json::parse(read_text(out + "/model.safetensors.index.json"));
  std::set<std::string> files;
  for (const auto& [tensor, file] : index["weight_map"].items()) files.insert(file.get<std::string>());
  EXPECT_GE(files.size(), 2u);
  for (const std::string& file : files) EXPECT_TRUE(fs::exists(out + "/" + file)) << file;
  const Checkpoint carved = open_checkpoint(out);
  int64_t bytes = 0;
  for (const std::string& name : carved.tensors->names()) bytes += carved.tensors->stored_bytes(name);
  EXPECT_EQ(index["metadata"]["total_size"].get<int64_t>(), bytes);
  EXPECT_EQ(index["weight_map"].size(), carved.tensors->names().size());
  EXPECT_EQ(neurons_of(carved, 2).size(), 6u);
}

TEST_F(CarveJob, AGgufFileGivesTheSameModelAndATokenizer) {
  const std::string gguf = *folder_ / "tiny.gguf", gguf_profile = *folder_ / "gguf.h5", out = *folder_ / "from-gguf";
  write_text(gguf, tiny_llama_gguf());
  const std::vector<float> dense = logits(kModel), ids = read_npy(*folder_ / "ids.npy");
  EXPECT_EQ(logits(gguf), dense);
  ASSERT_EQ(run_cmoe({"profile", "--model", gguf, "--dataset", fixture("text/train.txt"), "--samples", "3", "--seq-len", "192",
                      "--quiet", "--out", gguf_profile})
                .code,
            0);
  ASSERT_EQ(
      run_cmoe({"carve", "--model", gguf, "--profile", gguf_profile, "--experts", "S3A3E8", "--quiet", "--out", out}).code, 0);
  const std::vector<float> from_gguf = logits(out);
  EXPECT_EQ(read_npy(*folder_ / "ids.npy"), ids);
  EXPECT_EQ(from_gguf, logits(carve("S3A3E8", "best", {"--out-dtype", "f32"})));
  EXPECT_EQ(nlohmann::json::parse(read_text(out + "/tokenizer.json"))["model"]["vocab"].size(), 384u);
  EXPECT_EQ(nlohmann::json::parse(read_text(out + "/generation_config.json"))["eos_token_id"], 2);
}

TEST_F(CarveJob, SixteenBitModelsStaySoAndFollowOutDtype) {
  const auto type = [](const std::string& folder) {
    return open_checkpoint(folder).tensors->stored_type("model.layers.0.mlp.experts.0.up_proj.weight");
  };
  EXPECT_EQ(type(carve("S3A3E8", "paper")), "BF16");
  EXPECT_EQ(type(carve("S3A3E8", "paper", {"--out-dtype", "f32"})), "F32");
  EXPECT_EQ(type(carve("S3A3E8", "paper", {"--out-dtype", "f16"})), "F16");
}

TEST_F(CarveJob, ReplacesAnExistingFolderOnlyWithForce) {
  const std::string out = *folder_ / "existing";
  fs::create_directory(out);
  write_text(out + "/precious", "text");
  const ProgramResult refused = run_cmoe(command("S3A3E8", "paper", out));
  EXPECT_EQ(refused.code, 2);
  EXPECT_THAT(refused.err, HasSubstr("--force"));
  EXPECT_EQ(read_text(out + "/precious"), "text");
  EXPECT_EQ(run_cmoe(command("S3A3E8", "paper", out, {"--force"})).code, 0);
  EXPECT_FALSE(fs::exists(out + "/precious"));
  EXPECT_TRUE(fs::exists(out + "/manifest.json"));
}

TEST_F(CarveJob, DryRunPrintsTheFilesAndWritesNothing) {
  const std::string out = *folder_ / "planned";
  for (const std::string recipe : {"best", "static", "authors"}) {
    const ProgramResult plan = run_cmoe(command("S3A3E8", recipe, out, {"--dry-run"}));
    EXPECT_EQ(plan.code, 0) << plan.err;
    EXPECT_FALSE(fs::exists(out));
    for (const char* part : {"S3A3E8", "neurons per expert", "memory per rank", "bytes all-reduced per rank and layer"}) {
      EXPECT_THAT(plan.out, HasSubstr(part));
    }
    const std::string real = std::to_string(fs::file_size(carve("S3A3E8", recipe) + "/model.safetensors"));
    EXPECT_THAT(plan.out, HasSubstr("model.safetensors")) << recipe;
    EXPECT_THAT(plan.out, HasSubstr(real + " bytes")) << recipe;
  }
}

TEST_F(CarveJob, TheCardAndTheOptionsBesideTheModelRepeatIt) {
  const std::string first = carve("S2A2E8", "authors", {"--seed", "3"}), again = *folder_ / "again";
  const ProgramResult result = run_cmoe({"carve", "--config", first + "/cmoe.cfg", "--out", again});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(sha256_of_file(again + "/model.safetensors"), sha256_of_file(first + "/model.safetensors"));
  EXPECT_EQ(read_text(again + "/README.md"), read_text(first + "/README.md"));
}

TEST_F(CarveJob, AReadOnlyFolderIsRefused) {
  if (::geteuid() == 0) GTEST_SKIP() << "root writes everywhere";
  const std::string place = *folder_ / "read-only";
  fs::create_directory(place);
  fs::permissions(place, fs::perms::owner_read | fs::perms::owner_exec);
  const ProgramResult result = run_cmoe(command("S3A3E8", "paper", place + "/carved"));
  fs::permissions(place, fs::perms::owner_all);
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.err, HasSubstr(place));
  EXPECT_TRUE(fs::is_empty(place));
}

// On file systems of their own that fill up early, in the middle and late.
TEST_F(CarveJob, AFullDiskLeavesNothingBehind) {
  const std::string place = *folder_ / "full";
  fs::create_directory(place);
  const auto refused = [&](std::vector<std::string> words, int ranks, const std::string& product) {
    words.back() = place + "/" + product;
    const ProgramResult result = run_cmoe(words, {.ranks = ranks, .environment = {}, .folder = "", .kill_when_exists = ""});
    EXPECT_EQ(result.code, 1) << result.err;
    EXPECT_TRUE(fs::is_empty(place)) << "left over";
    std::istringstream lines(result.err);
    std::vector<std::string> causes;
    for (std::string line; std::getline(lines, line);) {
      if (line.find("error: ") == 0) causes.push_back(line);
    }
    ASSERT_EQ(causes.size(), 1u) << result.err;
    EXPECT_THAT(causes[0], HasSubstr(product));
    EXPECT_THAT(causes[0], AnyOf(HasSubstr("No space left"), HasSubstr("the disk has 0 B left")));
  };
  for (const std::string size : {"8k", "64k", "200k"}) {
    if (::mount("tmpfs", place.c_str(), "tmpfs", 0, ("size=" + size).c_str()) != 0) {
      GTEST_SKIP() << "needs the right to mount a tmpfs";
    }
    for (int ranks : {1, 2, 3}) {
      SCOPED_TRACE(size + " on " + std::to_string(ranks) + " ranks");
      refused(command("S3A3E8", "best", ""), ranks, "carved");
      refused({"profile", "--model", kModel, "--dataset", fixture("text/train.txt"), "--samples", "8", "--seq-len", "200",
               "--k-act", "40", "--quiet", "--out", ""},
              ranks, "p.h5");
    }
    ::umount(place.c_str());
  }
}

}  // namespace
}  // namespace cmoe

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "carve/columns.h"
#include "carve/export.h"
#include "small_layer.h"
#include "support/refusal.h"
#include "support/tiny_model.h"
#include "support/world.h"

namespace cmoe {
namespace {

using ::testing::HasSubstr;

const ExpertShape kShape{.shared = 3, .active = 3, .experts = 8};

// Neuron i belongs to expert i % 8, the first three being shared.
CarvedLayer layer_of(const Recipe& recipe, const DenseFfnTensors& dense) {
  CarvedLayer layer{.router_kind = recipe.router, .selector = recipe.selector, .threshold = 0.5f, .down = dense.down};
  layer.experts.resize(5);
  for (int32_t i = 0; i < dense.down.dim(1); ++i) {
    if (i % 8 < 3) layer.shared.push_back(i);
    if (i % 8 >= 3) layer.experts[static_cast<size_t>(i % 8 - 3)].push_back(i);
  }
  layer.router_weight = random_tensor({5, 64}, 1);
  layer.router_bias = random_tensor({5}, 2);
  layer.router_gate = random_tensor({5, 64}, 3);
  layer.router_up = random_tensor({5, 64}, 4);
  layer.compensation_bias = random_tensor({64}, 5);
  layer.expert_bias = random_tensor({5, 64}, 6);
  return layer;
}

// Written by all ranks of the group into `folder`, with what a reader needs beside the weights.
std::vector<std::string> write(const Recipe& recipe, int64_t shard_bytes, const std::string& folder, Communicator& comm) {
  const Checkpoint dense = open_checkpoint(fixture("tiny-llama"));
  const ModelConfig config = carved_config(dense.config, recipe, kShape);
  CarvedModelWriter writer(dense, config, DType::f32, shard_bytes, folder, comm);
  for (int64_t l = comm.rank(); l < 3; l += comm.size()) {
    const DenseFfnTensors ffn = read_dense_ffn(dense, l, DType::f32);
    writer.write_layer(l, layer_of(recipe, ffn), ffn);
  }
  writer.copy_dense_tensors();
  const std::vector<std::string> names = writer.finish();
  for (const auto& [name, bytes] : writer.files())
    EXPECT_EQ(static_cast<int64_t>(std::filesystem::file_size(folder + "/" + name)), bytes);
  if (comm.rank() == 0) write_text(folder + "/config.json", config.to_json().dump());
  comm.barrier();
  return names;
}

// A folder that all ranks share, gone at the end.
class SharedFolder {
 public:
  explicit SharedFolder(Communicator& comm)
      : comm_(comm), path_(comm.broadcast_string(TemporaryDirectory().path().string(), 0)) {
    if (comm.rank() == 0) std::filesystem::create_directory(path_);
    comm.barrier();
  }
  ~SharedFolder() {
    comm_.barrier();
    if (comm_.rank() == 0) std::filesystem::remove_all(path_);
  }
  const std::string& path() const { return path_; }

 private:
  Communicator& comm_;
  std::string path_;
};

TEST(Export, ReadsBackWithEveryRouterAndCompensation) {
  for (const char* name : {"best", "paper", "authors"}) {
    for (Compensation compensation : {Compensation::none, Compensation::mean, Compensation::refit}) {
      Recipe recipe = recipe_by_name(name);
      recipe.compensation = compensation;
      SCOPED_TRACE(name + std::string(" ") + std::string(name_of(compensation)));
      const SharedFolder folder(test_world());
      EXPECT_THAT(write(recipe, 1 << 30, folder.path(), test_world()), ::testing::ElementsAre("model.safetensors"));
      const Checkpoint carved = open_checkpoint(folder.path());  // checks that the tensors are those of the config
      const Checkpoint dense = open_checkpoint(fixture("tiny-llama"));
      const DenseFfnTensors ffn = read_dense_ffn(dense, 2, DType::f32);
      const CarvedLayer expected = layer_of(recipe, ffn);
      const auto read = [&](const std::string& tensor, const Shape& shape) {
        return bytes_of(carved.tensors->read("model.layers.2.mlp." + tensor, shape, DType::f32));
      };
      EXPECT_EQ(read("experts.4.gate_proj.weight", {20, 64}), bytes_of(gather_matrix_rows(ffn.gate, expected.experts[4])));
      EXPECT_EQ(read("experts.0.up_proj.weight", {20, 64}), bytes_of(gather_matrix_rows(ffn.up, expected.experts[0])));
      EXPECT_EQ(read("shared_experts.down_proj.weight", {64, 60}), bytes_of(gather_columns(ffn.down, expected.shared)));
      if (recipe.router == RouterKind::linear) {
        EXPECT_EQ(read("router.weight", {5, 64}), bytes_of(expected.router_weight));
        EXPECT_EQ(read("router.bias", {5}), bytes_of(expected.router_bias));
      } else {
        EXPECT_EQ(read("router.gate_proj.weight", {5, 64}), bytes_of(expected.router_gate));
        EXPECT_EQ(read("router.up_proj.weight", {5, 64}), bytes_of(expected.router_up));
      }
      EXPECT_EQ(carved.tensors->contains("model.layers.2.mlp.router.threshold"), recipe.selector == Selector::threshold);
      EXPECT_EQ(carved.tensors->contains("model.layers.2.mlp.compensation.bias"), compensation != Compensation::none);
      EXPECT_EQ(carved.tensors->contains("model.layers.2.mlp.experts.1.down_proj.bias"), compensation == Compensation::mean);
      if (compensation == Compensation::mean) {
        EXPECT_EQ(read("experts.1.down_proj.bias", {64}), bytes_of(expected.expert_bias.rows(1, 2)));
      }
      const Shape embedding{384, 64};
      EXPECT_EQ(bytes_of(carved.tensors->read("model.embed_tokens.weight", embedding, DType::f32)),
                bytes_of(dense.tensors->read("model.embed_tokens.weight", embedding, DType::f32)));
    }
  }
}

TEST(Export, SeveralFilesHoldTheSameTensorsOnAnyNumberOfRanks) {
  const Recipe recipe = recipe_by_name("best");
  const SharedFolder folder(test_world());
  const TemporaryDirectory own;
  const auto alone = test_world().split(test_world().rank());
  const std::vector<std::string> names = write(recipe, 150000, folder.path(), test_world());
  EXPECT_EQ(write(recipe, 150000, own.path().string(), *alone), names);
  EXPECT_GT(names.size(), 4u);
  EXPECT_EQ(names.back(), "model.safetensors.index.json");
  for (const std::string& name : names) EXPECT_TRUE(read_text(folder.path() + "/" + name) == read_text(own / name)) << name;
  const nlohmann::json index = nlohmann::json::parse(read_text(own / "model.safetensors.index.json"));
  int64_t bytes = 0;
  for (const TensorSpec& spec :
       carved_tensors(carved_config(open_checkpoint(fixture("tiny-llama")).config, recipe, kShape), DType::f32)) {
    EXPECT_TRUE(index["weight_map"].contains(spec.name)) << spec.name;
    bytes += std::accumulate(spec.shape.begin(), spec.shape.end(), int64_t{4}, std::multiplies<>());
  }
  EXPECT_EQ(index["metadata"]["total_size"].get<int64_t>(), bytes);
  const TemporaryDirectory whole;
  write(recipe, 1 << 30, whole.path().string(), *alone);
  const auto split = read_tensors(open_checkpoint(own.path())), together = read_tensors(open_checkpoint(whole.path()));
  ASSERT_EQ(split.size(), together.size());
  for (const auto& [name, tensor] : together) EXPECT_TRUE(bytes_of(split.at(name)) == bytes_of(tensor)) << name;
}

TEST(PlanFiles, KeepsToTheSizeUnlessATensorAloneIsLarger) {
  const ModelConfig config = carved_config(open_checkpoint(fixture("tiny-llama")).config, recipe_by_name("best"), kShape);
  const size_t all = carved_tensors(config, DType::bf16).size();
  for (const int64_t limit : {int64_t{1}, int64_t{60000}, int64_t{100000}, int64_t{1} << 40}) {
    size_t tensors = 0;
    std::set<std::string> names;
    for (const PlannedFile& file : plan_files(config, DType::bf16, limit)) {
      int64_t bytes = 0;
      for (const TensorSpec& spec : file.tensors)
        bytes += std::accumulate(spec.shape.begin(), spec.shape.end(), size_of(spec.dtype), std::multiplies<>());
      EXPECT_TRUE(bytes <= limit || file.tensors.size() == 1) << file.name;
      EXPECT_GT(file.bytes, bytes);
      tensors += file.tensors.size();
      names.insert(file.name);
      if (limit == 1) {
        EXPECT_EQ(file.tensors.size(), 1u);
      }
    }
    EXPECT_EQ(tensors, all);
    if (limit == int64_t{1} << 40) {
      EXPECT_THAT(names, ::testing::ElementsAre("model.safetensors"));
    }
    if (limit == 1) {
      EXPECT_EQ(names.size(), all);
    }
  }
}

TEST(Export, AMissingLayerIsAnErrorOfTheProgram) {
  const TemporaryDirectory folder;
  const auto alone = test_world().split(test_world().rank());
  const Checkpoint dense = open_checkpoint(fixture("tiny-llama"));
  const Recipe recipe = recipe_by_name("paper");
  CarvedModelWriter writer(dense, carved_config(dense.config, recipe, kShape), DType::f32, 1 << 30, folder.path().string(),
                           *alone);
  writer.copy_dense_tensors();
  EXPECT_THAT(refusal([&] { writer.finish(); }), HasSubstr("tensors were written"));
}

TEST(CarvedConfig, CountsExpertsOfStaticBaselines) {
  const ModelConfig dense = open_checkpoint(fixture("tiny-llama")).config;
  const MoeConfig routed = *carved_config(dense, recipe_by_name("best"), kShape).moe;
  EXPECT_EQ(routed.num_experts, 8);
  EXPECT_EQ(routed.num_routed_experts(), 5);
  EXPECT_EQ(routed.moe_intermediate_size, 20);
  for (const char* name : {"static", "flap", "static-refit"}) {
    const MoeConfig fixed = *carved_config(dense, recipe_by_name(name), kShape).moe;
    EXPECT_EQ(fixed.num_routed_experts(), 0) << name;
    EXPECT_EQ(fixed.num_shared_experts, 6) << name;
    EXPECT_FALSE(fixed.expert_bias) << name;
    EXPECT_EQ(fixed.compensation_bias, std::string(name) != "static") << name;
  }
}

}  // namespace
}  // namespace cmoe

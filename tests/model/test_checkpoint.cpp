#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "model/checkpoint.h"
#include "model/expected_tensors.h"
#include "model/gguf_model.h"
#include "support/files.h"
#include "support/gguf_builder.h"
#include "tensor/safetensors.h"
#include "tensor/safetensors_writer.h"

namespace cmoe {
namespace {

using nlohmann::json;
using Tensors = std::map<std::string, Tensor>;

json small_config() {
  return {{"model_type", "llama"},  {"hidden_size", 32},        {"intermediate_size", 64},
          {"vocab_size", 16},       {"num_attention_heads", 4}, {"num_key_value_heads", 2},
          {"num_hidden_layers", 2}, {"rms_norm_eps", 1e-5},     {"max_position_embeddings", 64}};
}

// Every weight of the model, each with a value of its own.
Tensors weights_of(const ModelConfig& config) {
  Tensors tensors;
  float value = 0;
  for (const ExpectedTensor& expected : expected_tensors(config)) {
    Tensor tensor(DType::f32, expected.shape);
    for (float& w : tensor.span<float>()) w = (value += 1) * 0x1p-12f;
    tensors[expected.name] = tensor;
  }
  return tensors;
}

void write_safetensors(const std::filesystem::path& path, const Tensors& tensors, DType dtype = DType::f32) {
  std::vector<TensorSpec> specs;
  for (const auto& [name, tensor] : tensors) specs.push_back({name, dtype, tensor.shape()});
  std::string bytes;
  SafetensorsWriter writer(specs, {}, [&](const void* data, int64_t count, int64_t offset) {
    bytes.resize(std::max(bytes.size(), static_cast<size_t>(offset + count)));
    bytes.replace(static_cast<size_t>(offset), static_cast<size_t>(count), static_cast<const char*>(data),
                  static_cast<size_t>(count));
  });
  for (const auto& [name, tensor] : tensors) writer.write(name, tensor);
  write_bytes(path, bytes);
}

void write_folder(const std::filesystem::path& folder, const json& config, const Tensors& tensors) {
  write_bytes(folder / "config.json", config.dump());
  write_safetensors(folder / "model.safetensors", tensors);
}

bool equal(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && std::equal(a.span<float>().begin(), a.span<float>().end(), b.span<float>().begin());
}

class CheckpointTest : public ::testing::Test {
 protected:
  json config = small_config();
  ModelConfig model = ModelConfig::from_json(config, "test");
  Tensors tensors = weights_of(model);
  TempFolder folder;

  void expect_refused(const std::string& part, const std::string& file = "") {
    write_folder(folder.path(), config, tensors);
    expect_error([&] { open_checkpoint(folder.path()); }, part, file);
  }
};

TEST_F(CheckpointTest, ReadsAFolderWithOneFile) {
  write_folder(folder.path(), config, tensors);
  const Checkpoint checkpoint = open_checkpoint(folder.path());
  EXPECT_EQ(checkpoint.format, "safetensors");
  EXPECT_EQ(checkpoint.tensors->names().size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    EXPECT_TRUE(equal(checkpoint.tensors->read(name, tensor.shape(), DType::f32), tensor)) << name;
    EXPECT_EQ(checkpoint.tensors->stored_bytes(name), tensor.bytes());
    EXPECT_EQ(checkpoint.tensors->stored_type(name), "F32");
  }
  expect_error(
      [&] {
        checkpoint.tensors->read("lm_head.weight", {32, 16}, DType::f32);
      },
      "model.safetensors: tensor 'lm_head.weight' has shape [16, 32], expected [32, 16]");
  expect_error([&] { checkpoint.tensors->read("other", {1}, DType::f32); }, "model.safetensors: tensor 'other' is missing");
}

TEST_F(CheckpointTest, ReadsShards) {
  SafetensorsIndex index;
  Tensors shards[2];
  for (const auto& [name, tensor] : tensors) {
    const int shard = name.find("mlp") != std::string::npos;
    shards[shard][name] = tensor;
    index.weight_map[name] = fmt::format("model-0000{}-of-00002.safetensors", shard + 1);
  }
  write_bytes(folder / "config.json", config.dump());
  write_bytes(folder / "model.safetensors.index.json", to_json_text(index));
  write_safetensors(folder / "model-00001-of-00002.safetensors", shards[0]);
  expect_error([&] { open_checkpoint(folder.path()); },
               "model.safetensors.index.json: shard 'model-00002-of-00002.safetensors' is missing");
  write_safetensors(folder / "model-00002-of-00002.safetensors", shards[1], DType::f16);
  const Checkpoint checkpoint = open_checkpoint(folder.path());
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  EXPECT_EQ(checkpoint.tensors->stored_type(name), "F16");
  EXPECT_TRUE(equal(checkpoint.tensors->read(name, {64, 32}, DType::f32), tensors.at(name).to(DType::f16).to(DType::f32)));

  // A tensor that the index promises elsewhere, and one it does not know.
  Tensors moved = shards[1];
  moved.erase(name);
  write_safetensors(folder / "model-00002-of-00002.safetensors", moved);
  expect_error([&] { open_checkpoint(folder.path()); }, "model-00002-of-00002.safetensors: tensor '" + name + "' is missing",
               "expected it here by model.safetensors.index.json");
  moved = shards[1];
  moved["model.norm.weight"] = tensors.at("model.norm.weight");
  write_safetensors(folder / "model-00002-of-00002.safetensors", moved);
  expect_error([&] { open_checkpoint(folder.path()); },
               "holds tensor 'model.norm.weight', which model.safetensors.index.json does not expect");
}

TEST_F(CheckpointTest, MissingTensorIsNamed) {
  tensors.erase("model.layers.1.self_attn.o_proj.weight");
  expect_refused("model.safetensors: tensor 'model.layers.1.self_attn.o_proj.weight' is missing");
}

TEST_F(CheckpointTest, WrongShapeIsNamedWithItsDimensions) {
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  tensors[name] = Tensor::zeros(DType::f32, {32, 64});
  expect_refused("model.safetensors: tensor '" + name +
                 "' has shape [32, 64], expected [64, 32] (intermediate_size, hidden_size)");
}

TEST_F(CheckpointTest, TensorsTheConfigDoesNotCallForAreRefused) {
  tensors["model.layers.0.self_attn.q_proj.bias"] = Tensor::zeros(DType::f32, {32});
  expect_refused("holds tensor 'model.layers.0.self_attn.q_proj.bias', which the config does not call for");
  tensors.erase("model.layers.0.self_attn.q_proj.bias");
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = Tensor::zeros(DType::f32, {4});  // old folders carry this table
  write_folder(folder.path(), config, tensors);
  EXPECT_NO_THROW(open_checkpoint(folder.path()));
}

TEST_F(CheckpointTest, ATiedModelMayBeSavedUnderEitherName) {
  config["tie_word_embeddings"] = true;
  const Tensor embedding = tensors.at("model.embed_tokens.weight");
  tensors.erase("model.embed_tokens.weight");
  tensors["lm_head.weight"] = embedding;
  write_folder(folder.path(), config, tensors);
  EXPECT_TRUE(
      equal(open_checkpoint(folder.path()).tensors->read("model.embed_tokens.weight", {16, 32}, DType::f32), embedding));
  tensors.erase("lm_head.weight");
  expect_refused("tensor 'model.embed_tokens.weight' is missing");
  tensors["model.embed_tokens.weight"] = embedding;
  write_folder(folder.path(), config, tensors);
  EXPECT_NO_THROW(open_checkpoint(folder.path()));
}

TEST_F(CheckpointTest, WeightsThatAreNotFiniteAreRefusedWithTheirPlace) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    tensors.at("model.norm.weight").data<float>()[7] = bad;
    write_folder(folder.path(), config, tensors);
    const Checkpoint checkpoint = open_checkpoint(folder.path());
    for (DType as : {DType::f32, DType::bf16}) {
      expect_error(
          [&] { checkpoint.tensors->read("model.norm.weight", {32}, as); },
          fmt::format("model.safetensors: tensor 'model.norm.weight' holds {} at element 7 of [32]; expected finite weights",
                      std::isnan(bad) ? "NaN" : "an infinity"));
    }
  }
}

TEST_F(CheckpointTest, WhatIsNoCheckpointIsRefused) {
  expect_error([&] { open_checkpoint(folder / "none"); }, "none: no such file or folder; expected a Hugging Face folder");
  expect_error([&] { open_checkpoint(folder.path()); }, "has no config.json; expected a Hugging Face folder");
  write_bytes(folder / "config.json", config.dump());
  expect_error([&] { open_checkpoint(folder.path()); }, "has neither model.safetensors nor model.safetensors.index.json");
  write_bytes(folder / "pytorch_model.bin", "");
  expect_error([&] { open_checkpoint(folder.path()); }, "pytorch_model.bin is not read, convert it");
  write_bytes(folder / "model.safetensors", "");
  expect_error([&] { open_checkpoint(folder.path()); }, "model.safetensors: is cut short");
  expect_error([&] { open_checkpoint(folder / "model.safetensors"); }, "is a lone safetensors file; give the folder");
  write_bytes(folder / "config.json", R"({"hidden_size":1,"hidden_size":2})");
  expect_error([&] { open_checkpoint(folder.path()); }, "config.json: the name 'hidden_size' occurs twice");
}

TEST(Checkpoint, CarvedConfigsCallForTheirTensors) {
  ModelConfig config = ModelConfig::from_json(small_config(), "test");
  config.moe = MoeConfig{.num_experts = 8,
                         .num_shared_experts = 3,
                         .num_experts_per_tok = 3,
                         .moe_intermediate_size = 8,
                         .selector = Selector::threshold,
                         .compensation_bias = true,
                         .expert_bias = true};
  int64_t ffn_neurons = 0;
  std::map<std::string, Shape> shapes;
  for (const ExpectedTensor& tensor : expected_tensors(config)) {
    shapes[tensor.name] = tensor.shape;
    if (tensor.name.starts_with("model.layers.1.") && tensor.name.ends_with("up_proj.weight")) ffn_neurons += tensor.shape[0];
  }
  EXPECT_EQ(ffn_neurons, 64);
  EXPECT_EQ(shapes.at("model.layers.0.mlp.shared_experts.down_proj.weight"), (Shape{32, 24}));
  EXPECT_EQ(shapes.at("model.layers.1.mlp.experts.4.gate_proj.weight"), (Shape{8, 32}));
  EXPECT_EQ(shapes.at("model.layers.1.mlp.experts.4.down_proj.bias"), Shape{32});
  EXPECT_FALSE(shapes.contains("model.layers.1.mlp.experts.5.gate_proj.weight"));
  EXPECT_EQ(shapes.at("model.layers.1.mlp.router.weight"), (Shape{5, 32}));
  EXPECT_EQ(shapes.at("model.layers.1.mlp.router.threshold"), Shape{1});
  EXPECT_EQ(shapes.at("model.layers.1.mlp.compensation.bias"), Shape{32});
  const Tensors tensors = weights_of(config);
  const TempFolder folder;
  write_folder(folder.path(), config.to_json(), tensors);
  EXPECT_TRUE(open_checkpoint(folder.path()).config.moe);
}

// --- GGUF -------------------------------------------------------------------------------------------

// What llama.cpp's converter does to a Q or K projection; written from its definition, independent of the reader's inverse.
Tensor interleaved(const Tensor& weight, int64_t heads) {
  const int64_t head_dim = weight.dim(0) / heads;
  Tensor result(DType::f32, weight.shape());
  for (int64_t row = 0; row < weight.dim(0); ++row) {
    const int64_t head = row / head_dim, within = row % head_dim;
    const int64_t pair = within % (head_dim / 2), half = within / (head_dim / 2);
    std::copy_n(weight.row<float>(row), weight.dim(1), result.row<float>(head * head_dim + 2 * pair + half));
  }
  return result;
}

GgufBuilder gguf_of(const ModelConfig& config, const Tensors& tensors) {
  GgufBuilder builder;
  builder.key("general.architecture", std::string("llama"))
      .key("llama.embedding_length", 32u)
      .key("llama.feed_forward_length", 64u);
  builder.key("llama.block_count", 2u).key("llama.context_length", 64u).key("llama.attention.head_count", 4u);
  builder.key("llama.attention.head_count_kv", 2u).key("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  builder.key("llama.rope.freq_base", static_cast<float>(config.rope_theta)).key("llama.rope.dimension_count", 8u);
  builder.key("tokenizer.ggml.bos_token_id", 1u).key("tokenizer.ggml.eos_token_id", 2u);
  for (const auto& [name, tensor] : tensors) {
    Tensor stored = tensor;
    if (name.ends_with("q_proj.weight")) stored = interleaved(tensor, config.num_attention_heads);
    if (name.ends_with("k_proj.weight")) stored = interleaved(tensor, config.num_key_value_heads);
    std::vector<uint64_t> dims(stored.shape().rbegin(), stored.shape().rend());
    builder.f32(*gguf_name(name), dims, {stored.span<float>().begin(), stored.span<float>().end()});
  }
  return builder;
}

TEST_F(CheckpointTest, GgufGivesTheFoldersConfigAndWeights) {
  write_bytes(folder / "model.gguf", gguf_of(model, tensors).file());
  const Checkpoint checkpoint = open_checkpoint(folder / "model.gguf");
  EXPECT_EQ(checkpoint.format, "gguf");
  EXPECT_EQ(checkpoint.config.to_json(), model.to_json());
  for (const auto& [name, tensor] : tensors) {
    EXPECT_TRUE(equal(checkpoint.tensors->read(name, tensor.shape(), DType::f32), tensor)) << name;
  }
  expect_error([&] { checkpoint.tensors->read("model.norm.weight", {33}, DType::f32); },
               "model.gguf: tensor 'model.norm.weight' has shape [32], expected [33]");
}

TEST_F(CheckpointTest, GgufNamesRoundTrip) {
  for (const auto& [name, tensor] : tensors) EXPECT_EQ(hugging_face_name(gguf_name(name).value_or("?")), name);
  EXPECT_EQ(gguf_name("model.layers.12.mlp.up_proj.weight"), "blk.12.ffn_up.weight");
  for (const char* odd :
       {"blk..ffn_up.weight", "blk.1", "blk.x.ffn_up.weight", "blk.1.ffn_up.bias", "blk.1.weight", "", "blk.", "output"}) {
    EXPECT_EQ(hugging_face_name(odd), std::nullopt) << odd;
  }
}

TEST_F(CheckpointTest, GgufWithoutAnOutputHasATiedHead) {
  tensors.erase("lm_head.weight");
  write_bytes(folder / "m.gguf", gguf_of(model, tensors).file());
  EXPECT_TRUE(open_checkpoint(folder / "m.gguf").config.tie_word_embeddings);
}

TEST_F(CheckpointTest, GgufRecoversLlama3Scaling) {
  const auto with_factors = [&](const std::vector<float>& factors) {
    GgufBuilder builder = gguf_of(model, tensors);
    write_bytes(folder / "m.gguf", builder.f32("rope_freqs.weight", {factors.size()}, factors).file());
  };
  with_factors({1, 1, 1, 1});
  EXPECT_FALSE(open_checkpoint(folder / "m.gguf").config.rope_scaling);
  model.rope_theta = 500000;
  with_factors({1, 1, 2.6945304f, 8});  // transformers' base frequencies over its scaled ones
  const auto scaling = open_checkpoint(folder / "m.gguf").config.rope_scaling;
  ASSERT_TRUE(scaling);
  EXPECT_EQ(scaling->type, "llama3");
  EXPECT_EQ(scaling->factor, 8.0);
  EXPECT_EQ(scaling->original_max_position_embeddings, 8192);
  with_factors({1, 1, 4, 8});
  expect_error([&] { open_checkpoint(folder / "m.gguf"); },
               "tensor 'rope_freqs.weight' holds RoPE factors this program does not know");
  with_factors({1, 1});
  expect_error([&] { open_checkpoint(folder / "m.gguf"); },
               "tensor 'rope_freqs.weight' has shape [2], expected [4] (head_dim / 2)");
}

TEST_F(CheckpointTest, GgufRefusalsNameTheKey) {
  const auto refused = [&](const GgufBuilder& builder, const std::string& part) {
    write_bytes(folder / "m.gguf", builder.file());
    expect_error([&] { open_checkpoint(folder / "m.gguf"); }, "m.gguf: ", part);
  };
  refused(GgufBuilder().key("general.architecture", std::string("qwen2")),
          "metadata 'general.architecture' is 'qwen2'; expected 'llama'");
  refused(GgufBuilder(), "metadata 'general.architecture' is missing");
  refused(GgufBuilder().key("general.architecture", std::string("llama")), "metadata 'llama.embedding_length' is missing");
  refused(gguf_of(model, tensors).key("llama.expert_count", 8u),
          "metadata 'llama.expert_count' is 8, which this program does not do");
  refused(gguf_of(model, tensors).key("split.count", 2u), "metadata 'split.count' is 2");
  refused(gguf_of(model, tensors).key("llama.attention.value_length", 4u),
          "'llama.attention.value_length' is 4; expected the size of a head, 8");
  refused(gguf_of(model, tensors).key("llama.rope.scaling.type", std::string("yarn")), "'llama.rope.scaling.type' is 'yarn'");
  refused(gguf_of(model, tensors).f32("blk.0.attn_q.bias", {32}, std::vector<float>(32)),
          "tensor 'blk.0.attn_q.bias' is not part of a llama");
  refused(gguf_of(model, tensors).f32("blk.2.ffn_norm.weight", {32}, std::vector<float>(32)),
          "holds tensor 'model.layers.2.post_attention");
  Tensors fewer = tensors;
  fewer.erase("model.layers.0.mlp.up_proj.weight");
  refused(gguf_of(model, fewer), "tensor 'model.layers.0.mlp.up_proj.weight' (blk.0.ffn_up.weight) is missing");
  fewer = tensors;
  fewer["model.norm.weight"] = Tensor::zeros(DType::f32, {31});
  refused(gguf_of(model, fewer), "tensor 'model.norm.weight' has shape [31], expected [32] (hidden_size)");
  fewer.erase("model.norm.weight");
  refused(gguf_of(model, fewer).tensor("output_norm.weight", {32}, 20, std::string(18, '\0')),
          "tensor 'output_norm.weight' is stored as IQ4_NL; expected F32, F16, BF16, Q8_0, Q4_0 or Q4_1");
}

// --- files of the world, where they are at hand -------------------------------------------------------

TEST(Checkpoint, ReadsAFolderThatTransformersWrote) {
  const char* shared = std::getenv("CMOE_SHARED_DATA");
  const std::filesystem::path data = shared ? shared : std::string(CMOE_SOURCE_DIR) + "/../shared/data";
  const auto path = data / "models/tinystories-656k";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no " << path;
  const Checkpoint checkpoint = open_checkpoint(path);
  int64_t weights = 0;
  for (const ExpectedTensor& t : expected_tensors(checkpoint.config)) {
    weights += checkpoint.tensors->read(t.name, t.shape, DType::f32).size();
  }
  EXPECT_EQ(weights, 656000);
}

}  // namespace
}  // namespace cmoe

// Adapters as files, and models read through them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "model/adapter.h"
#include "model/fingerprint.h"
#include "support/files.h"
#include "tensor/safetensors.h"
#include "tensor/safetensors_writer.h"
#include "train/adapter_files.h"
#include "train/support.h"

namespace cmoe {
namespace {

Tensor hidden_of(const Transformer& model, const std::vector<int32_t>& ids) {
  KvCache cache(model.config(), static_cast<int64_t>(ids.size()));
  const SequenceStep step{.tokens = ids, .cache = &cache};
  return model.forward(Batch(std::span(&step, 1)));
}

TEST(Adapter, MergedEqualsUnmerged) {
  for (const char* name : {"tiny-llama", "tiny-cmoe-healed", "tiny-cmoe-threshold", "tiny-cmoe-static", "tiny-cmoe-authors"}) {
    SCOPED_TRACE(name);
    const TempFolder folder;
    const bool routed = std::string(name) != "tiny-llama" && std::string(name) != "tiny-cmoe-static";
    TinyModel tiny(name, {.rank = 3, .expert_rank = 2, .alpha = 6, .rslora = true, .router_weights = routed});
    randomise(tiny.trained, 11, 0.1f);
    for (int64_t l = 0; routed && l < tiny.trained.num_layers(); ++l) {
      tiny.trained.router(l).selection_bias.data<float>()[0] += 0.25f;
      if (tiny.trained.router(l).selector == Selector::threshold) tiny.trained.router(l).threshold += 0.125f;
    }
    write_adapter(tiny.trained, "base", 0.1, folder.path().string());
    const Transformer merged(open_checkpoint(kModels + name, folder.path().string()), make_cpu_backend(), DType::f32);
    const std::vector<int32_t> ids = golden_ids(name);
    const Tensor expected = merged.logits(hidden_of(merged, ids));
    const Tensor found = tiny.base->logits(tiny.trained.hidden_states(ids, whole_sequence(static_cast<int64_t>(ids.size()))));
    double worst = 0, largest = 0;
    for (int64_t i = 0; i < found.size(); ++i) {
      worst = std::max(worst, std::abs(static_cast<double>(found.data<float>()[i] - expected.data<float>()[i])));
      largest = std::max(largest, std::abs(static_cast<double>(expected.data<float>()[i])));
    }
    EXPECT_LE(worst, 1e-5 * largest);
  }
}

TEST(Adapter, CountsInTheFingerprint) {
  const TempFolder folder;
  TinyModel tiny("tiny-llama");
  const auto fingerprint = [&] { return model_fingerprint(open_checkpoint(kModels + "tiny-llama", folder.path().string())); };
  randomise(tiny.trained, 11, 0.1f);
  write_adapter(tiny.trained, "base", 0.1, folder.path().string());
  const std::string one = fingerprint();
  EXPECT_EQ(fingerprint(), one);
  EXPECT_NE(one, model_fingerprint(open_checkpoint(kModels + "tiny-llama")));
  randomise(tiny.trained, 12, 0.1f);
  write_adapter(tiny.trained, "base", 0.1, folder.path().string());
  EXPECT_NE(fingerprint(), one);
}

TEST(Adapter, RefusesWhatDoesNotFit) {
  const TempFolder folder;
  const std::string path = folder.path().string();
  expect_error([&] { read_adapter(path); }, "adapter_config.json: missing");
  TinyModel tiny("tiny-cmoe-healed");
  write_adapter(tiny.trained, "base", 0.1, path);
  expect_error([&] { open_checkpoint(kModels + "tiny-llama", path); }, "it was made for another model than", "tiny-llama");
  expect_error([&] { open_checkpoint(kModels + "tiny-cmoe-static", path); }, "adapts 'model.layers.0.mlp.experts.0.down_proj'",
               "expected a matrix of the model");

  const std::string config = read_bytes(folder / "adapter_config.json");
  const auto with = [&](const char* key, const nlohmann::json& value) {
    nlohmann::json json = nlohmann::json::parse(config);
    json[key] = value;
    write_bytes(folder / "adapter_config.json", json.dump());
  };
  with("use_dora", true);
  expect_error([&] { read_adapter(path); }, "use_dora is set");
  with("peft_type", "IA3");
  expect_error([&] { read_adapter(path); }, "peft_type is 'IA3', expected LORA");
  with("r", 5);
  expect_error([&] { read_adapter(path); }, "has rank 8, expected 5");
  write_bytes(folder / "adapter_config.json", config);

  Tensor a(DType::f32, {2, 4});
  std::fill(a.span<float>().begin(), a.span<float>().end(), 0.0f);
  write_bytes(folder / "adapter_model.safetensors", safetensors_bytes({{"base_model.model.x.lora_A.weight", a}}, {}));
  expect_error([&] { read_adapter(path); }, "'base_model.model.x.lora_B.weight' is missing");
  write_bytes(folder / "adapter_model.safetensors", safetensors_bytes({{"x.weight", a}}, {}));
  expect_error([&] { read_adapter(path); }, "'x.weight' is no LoRA weight");
}

TEST(Adapter, PatternsNameTheModulesOnce) {
  const TempFolder folder;
  TinyModel tiny("tiny-cmoe-healed", {.lora_targets = {"q", "up"}, .rank = 4, .expert_rank = 2});
  write_adapter(tiny.trained, "base", 0, folder.path().string());
  const nlohmann::json json = nlohmann::json::parse(read_bytes(folder / "adapter_config.json"));
  EXPECT_EQ(json["target_modules"], ".*\\.(self_attn\\.(q_proj)|mlp\\.((shared_experts|experts\\.\\d+)\\.)?(up_proj))");
  EXPECT_EQ(json["rank_pattern"]["layers.1.mlp.experts.2.up_proj"], 2);
  EXPECT_FALSE(json["rank_pattern"].contains("layers.1.mlp.shared_experts.up_proj"));
  const Adapter adapter = read_adapter(folder.path());
  EXPECT_DOUBLE_EQ(adapter.modules.at("model.layers.0.self_attn.q_proj").scale, 8);
  EXPECT_DOUBLE_EQ(adapter.modules.at("model.layers.0.mlp.experts.0.up_proj").scale, 16);
}

}  // namespace
}  // namespace cmoe

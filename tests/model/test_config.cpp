#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "model/config.h"
#include "support/files.h"

namespace cmoe {
namespace {

using nlohmann::json;

json small() {
  return {{"model_type", "llama"}, {"hidden_size", 64},        {"intermediate_size", 160},
          {"vocab_size", 100},     {"num_attention_heads", 4}, {"num_hidden_layers", 3}};
}

json carved() {
  json config = small();
  config["model_type"] = "cmoe";
  config.update({{"num_experts", 8}, {"num_shared_experts", 3}, {"num_experts_per_tok", 3}, {"moe_intermediate_size", 20}});
  return config;
}

ModelConfig parse(const json& config) { return ModelConfig::from_json(config, "config.json"); }

void expect_refused(const json& base, const json& change, const std::string& part) {
  json config = base;
  for (const auto& [key, value] : change.items()) config[key] = value;
  expect_error([&] { parse(config); }, "config.json: ", part);
}

TEST(Config, DefaultsAreLlamas) {
  const ModelConfig c = parse(small());
  EXPECT_EQ(c.num_key_value_heads, 4);
  EXPECT_EQ(c.head_dim, 16);
  EXPECT_EQ(c.max_position_embeddings, 2048);
  EXPECT_EQ(c.rms_norm_eps, 1e-6);
  EXPECT_EQ(c.rope_theta, 10000.0);
  EXPECT_FALSE(c.rope_scaling || c.tie_word_embeddings || c.moe);
  EXPECT_EQ(c.bos_token_id, 1);
  EXPECT_EQ(c.eos_token_ids, std::vector<int32_t>{2});
  EXPECT_EQ(c.dtype, "float32");
}

TEST(Config, BothFormsOfRope) {
  json old = small(), now = small();
  const json llama3 = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 512}};
  old["rope_theta"] = 500000;
  old["rope_scaling"] = llama3;
  now["rope_parameters"] = llama3;
  now["rope_parameters"]["rope_theta"] = 500000.0;
  for (const json& config : {old, now}) {
    const ModelConfig c = parse(config);
    EXPECT_EQ(c.rope_theta, 500000.0);
    ASSERT_TRUE(c.rope_scaling);
    EXPECT_EQ(c.rope_scaling->type, "llama3");
    EXPECT_EQ(c.rope_scaling->factor, 8.0);
    EXPECT_EQ(c.rope_scaling->original_max_position_embeddings, 512);
  }
  now["rope_parameters"] = {{"rope_theta", 20000.0}, {"rope_type", "default"}};
  EXPECT_EQ(parse(now).rope_theta, 20000.0);
  EXPECT_FALSE(parse(now).rope_scaling);
  old["rope_scaling"] = {{"type", "linear"}, {"factor", 2.0}};  // the old name of rope_type
  EXPECT_EQ(parse(old).rope_scaling->type, "linear");
  expect_refused(small(), {{"rope_scaling", {{"rope_type", "yarn"}, {"factor", 2.0}}}},
                 "field 'rope_scaling.rope_type' is \"yarn\", which");
  expect_refused(small(), {{"rope_scaling", {{"rope_type", "linear"}}}}, "field 'rope_scaling.factor' is missing");
  expect_refused(small(), {{"rope_scaling", {{"rope_type", "linear"}, {"factor", 0.5}}}},
                 "rope scaling is out of range: factor 0.5");
  expect_refused(small(), {{"rope_parameters", {{"partial_rotary_factor", 0.5}}}},
                 "field 'rope_parameters.partial_rotary_factor' is 0.5");
}

TEST(Config, NullIsAbsentAndTokenIdsMayBeLists) {
  json config = small();
  config.update({{"head_dim", nullptr},
                 {"num_key_value_heads", nullptr},
                 {"rope_scaling", nullptr},
                 {"sliding_window", nullptr},
                 {"bos_token_id", nullptr},
                 {"eos_token_id", {5, 7}},
                 {"torch_dtype", "bfloat16"},
                 {"pretraining_tp", 4}});
  const ModelConfig c = parse(config);
  EXPECT_EQ(c.head_dim, 16);
  EXPECT_FALSE(c.bos_token_id);
  EXPECT_EQ(c.eos_token_ids, (std::vector<int32_t>{5, 7}));
  EXPECT_EQ(c.dtype, "bfloat16");
  config["eos_token_id"] = nullptr;
  EXPECT_TRUE(parse(config).eos_token_ids.empty());
}

TEST(Config, WhatIsMissingOrWrongIsNamed) {
  for (const char* key :
       {"model_type", "hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "num_hidden_layers"}) {
    json config = small();
    config.erase(key);
    expect_error([&] { parse(config); }, "config.json: field '" + std::string(key) + "' is missing");
  }
  expect_error([] { parse(json::array()); }, "config.json: the config is not a JSON object");
  expect_refused(small(), {{"hidden_size", "64"}}, "field 'hidden_size' is \"64\"; expected an integer");
  expect_refused(small(), {{"hidden_size", 64.5}}, "field 'hidden_size' is 64.5; expected an integer");
  expect_refused(small(), {{"hidden_size", -64}}, "field 'hidden_size' is -64; expected 1 to");
  expect_refused(small(), {{"num_hidden_layers", 1000000000}}, "field 'num_hidden_layers' is 1000000000; expected 1 to 4096");
  expect_refused(small(), {{"num_attention_heads", 0}}, "field 'num_attention_heads' is 0; expected 1 to");
  expect_refused(small(), {{"num_attention_heads", 5}},
                 "field 'hidden_size' is 64; expected a multiple of num_attention_heads (5)");
  expect_refused(small(), {{"num_key_value_heads", 3}},
                 "field 'num_key_value_heads' is 3; expected a divisor of num_attention_heads (4)");
  expect_refused(small(), {{"head_dim", 7}}, "field 'head_dim' is 7; expected an even number");
  expect_refused(small(), {{"rms_norm_eps", "small"}}, "field 'rms_norm_eps' is \"small\"; expected a number");
  expect_refused(small(), {{"rms_norm_eps", 0}}, "field 'rms_norm_eps' is 0; expected a small positive number");
  expect_refused(small(), {{"tie_word_embeddings", 1}}, "field 'tie_word_embeddings' is 1; expected true or false");
  expect_refused(small(), {{"bos_token_id", 100}}, "field 'bos_token_id' is 100; expected a token id in [0, 100)");
  expect_refused(small(), {{"eos_token_id", {1, -1}}}, "field 'eos_token_id' is -1; expected a token id");
  expect_refused(small(), {{"torch_dtype", "int8"}},
                 "field 'torch_dtype' is 'int8'; expected one of 'float32', 'float16', 'bfloat16'");
}

TEST(Config, WhatTheProgramDoesNotDoIsRefusedByName) {
  const std::pair<const char*, json> asks[] = {{"model_type", "qwen2"},
                                               {"hidden_act", "gelu"},
                                               {"attention_bias", true},
                                               {"mlp_bias", true},
                                               {"quantization_config", {{"bits", 4}}},
                                               {"sliding_window", 4096},
                                               {"partial_rotary_factor", 0.5},
                                               {"num_local_experts", 8},
                                               {"num_experts", 8},
                                               {"final_logit_softcapping", 30.0}};
  for (const auto& [key, value] : asks) {
    expect_refused(small(), {{key, value}},
                   fmt::format("field '{}' is {}, which this program does not do; expected", key, value.dump()));
  }
}

TEST(Config, MistralWithoutAWindowIsALlama) {
  json config = small();
  config["model_type"] = "mistral";
  config["sliding_window"] = nullptr;
  EXPECT_EQ(parse(config).to_json().at("architectures"), json({"MistralForCausalLM"}));
  expect_refused(config, {{"sliding_window", 4096}}, "field 'sliding_window' is 4096");
}

TEST(Config, CarvedRoundTrip) {
  json config = carved();
  config.update({{"router_type", "authors"},
                 {"router_selector", "threshold"},
                 {"compensation_bias", true},
                 {"expert_bias", true},
                 {"router_scale", true},
                 {"router_selection_bias", true},
                 {"tie_word_embeddings", true},
                 {"dtype", "bfloat16"},
                 {"eos_token_id", {3, 4}}});
  const json written = parse(config).to_json();
  EXPECT_EQ(written.at("model_type"), "cmoe");
  EXPECT_EQ(written.at("architectures"), json({"CmoeForCausalLM"}));
  EXPECT_EQ(written.at("auto_map").at("AutoModelForCausalLM"), "modeling_cmoe.CmoeForCausalLM");
  const ModelConfig back = parse(written);
  ASSERT_TRUE(back.moe);
  EXPECT_EQ(back.moe->num_routed_experts(), 5);
  EXPECT_EQ(back.moe->router, RouterKind::authors);
  EXPECT_EQ(back.moe->selector, Selector::threshold);
  EXPECT_TRUE(back.moe->compensation_bias && back.moe->expert_bias && back.moe->router_scale &&
              back.moe->router_selection_bias);
  EXPECT_EQ(back.to_json(), written);
}

TEST(Config, DenseRoundTripKeepsEveryField) {
  json config = small();
  config.update({{"rope_theta", 1e6},
                 {"rope_scaling", {{"rope_type", "linear"}, {"factor", 4.0}}},
                 {"head_dim", 32},
                 {"rms_norm_eps", 1e-5},
                 {"num_key_value_heads", 2},
                 {"max_position_embeddings", 77},
                 {"bos_token_id", nullptr}});
  const json written = parse(config).to_json();
  EXPECT_EQ(written.at("head_dim"), 32);
  EXPECT_EQ(written.at("rope_scaling").at("factor"), 4.0);
  EXPECT_TRUE(written.at("bos_token_id").is_null());
  EXPECT_FALSE(written.contains("num_experts"));
  EXPECT_EQ(parse(written).to_json(), written);
}

TEST(Config, ExpertsMustAddUp) {
  for (const char* key : {"num_experts", "num_shared_experts", "num_experts_per_tok", "moe_intermediate_size"}) {
    json config = carved();
    config.erase(key);
    expect_error([&] { parse(config); }, "field '" + std::string(key) + "' is missing");
  }
  expect_refused(carved(), {{"moe_intermediate_size", 21}},
                 "8 experts of 21 neurons make 168; expected intermediate_size (160)");
  expect_refused(carved(), {{"moe_intermediate_size", 19}},
                 "8 experts of 19 neurons make 152; expected intermediate_size (160)");
  expect_refused(carved(), {{"num_experts_per_tok", 6}}, "field 'num_experts_per_tok' is 6; expected 0 to 5");
  expect_refused(carved(), {{"num_shared_experts", 9}}, "field 'num_shared_experts' is 9; expected 0 to 8");
  expect_refused(carved(), {{"router_type", "hash"}},
                 "field 'router_type' is 'hash'; expected one of 'linear', 'analytical', 'authors'");
  expect_refused(carved(), {{"router_selector", "top2"}},
                 "field 'router_selector' is 'top2'; expected one of 'topk', 'threshold'");
  // A statically pruned layer keeps a part of the neurons and has no routed experts.
  json pruned = carved();
  pruned.update({{"num_experts", 6}, {"num_shared_experts", 6}, {"num_experts_per_tok", 0}});
  EXPECT_EQ(parse(pruned).moe->num_routed_experts(), 0);
}

}  // namespace
}  // namespace cmoe

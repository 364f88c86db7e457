#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "model/describe.h"
#include "model/expected_tensors.h"

namespace cmoe {
namespace {

std::string fixture(const std::string& name) { return std::string(CMOE_SOURCE_DIR) + "/tests/model/fixtures/" + name; }

int64_t sum(const nlohmann::json& totals, const char* field) {
  int64_t all = 0;
  for (const auto& [type, total] : totals.items()) all += total.at(field).get<int64_t>();
  return all;
}

TEST(Describe, PartsAndTypesAddUp) {
  for (const char* name : {"tiny-llama", "tiny-cmoe-authors", "tiny-cmoe-healed", "tiny-cmoe-static", "tiny-cmoe-threshold"}) {
    const Checkpoint checkpoint = open_checkpoint(fixture(name));
    const nlohmann::json d = describe_checkpoint(checkpoint);
    const nlohmann::json& parameters = d.at("parameters");
    int64_t parts = 0;
    for (const char* part : {"embedding", "attention", "ffn", "router", "norm"}) parts += parameters.at(part).get<int64_t>();
    EXPECT_EQ(parts, parameters.at("total")) << name;
    EXPECT_EQ(sum(d.at("types"), "parameters"), parameters.at("total")) << name;
    EXPECT_EQ(sum(d.at("types"), "tensors"), static_cast<int64_t>(expected_tensors(checkpoint.config).size())) << name;
    EXPECT_EQ(sum(d.at("types"), "bytes"), d.at("stored_bytes")) << name;
    EXPECT_EQ(d.contains("experts"), checkpoint.config.moe.has_value()) << name;
  }
}

TEST(Describe, CountsByHand) {
  const Checkpoint checkpoint = open_checkpoint(fixture("tiny-llama"));
  const ModelConfig& c = checkpoint.config;
  const nlohmann::json d = describe_checkpoint(checkpoint);
  EXPECT_EQ(d.at("parameters").at("ffn"), c.num_hidden_layers * 3 * c.hidden_size * c.intermediate_size);
  EXPECT_EQ(d.at("parameters").at("norm"), (2 * c.num_hidden_layers + 1) * c.hidden_size);
  EXPECT_EQ(d.at("parameters").at("router"), 0);
  EXPECT_EQ(d.at("parameters").at("embedding"), (c.tie_word_embeddings ? 1 : 2) * c.vocab_size * c.hidden_size);

  const Checkpoint carved = open_checkpoint(fixture("tiny-cmoe-threshold"));
  const MoeConfig& moe = *carved.config.moe;
  EXPECT_EQ(describe_checkpoint(carved).at("active_fraction"),
            static_cast<double>(moe.num_shared_experts + moe.num_experts_per_tok) / static_cast<double>(moe.num_experts));
}

}  // namespace
}  // namespace cmoe

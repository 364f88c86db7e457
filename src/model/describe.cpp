#include "model/describe.h"

#include <fmt/format.h>

#include <map>
#include <nlohmann/json.hpp>

#include "model/expected_tensors.h"

namespace cmoe {
namespace {

std::string part_of(const std::string& name) {
  if (name.find("norm") != std::string::npos) return "norm";
  if (name.find(".mlp.router.") != std::string::npos) return "router";
  if (name.find(".mlp.") != std::string::npos) return "ffn";
  if (name.find(".self_attn.") != std::string::npos) return "attention";
  return "embedding";
}

struct Total {
  int64_t tensors = 0, parameters = 0, bytes = 0;
};

}  // namespace

nlohmann::json describe_checkpoint(const Checkpoint& checkpoint) {
  std::map<std::string, int64_t> parts = {{"embedding", 0}, {"attention", 0}, {"ffn", 0}, {"router", 0}, {"norm", 0}};
  std::map<std::string, Total> types;
  Total all;
  for (const ExpectedTensor& tensor : expected_tensors(checkpoint.config)) {
    int64_t size = 1;
    for (int64_t extent : tensor.shape) size *= extent;
    parts[part_of(tensor.name)] += size;
    for (Total* total : {&types[checkpoint.tensors->stored_type(tensor.name)], &all}) {
      total->tensors += 1;
      total->parameters += size;
      total->bytes += checkpoint.tensors->stored_bytes(tensor.name);
    }
  }
  nlohmann::json description = {{"path", checkpoint.path.string()},
                                {"format", checkpoint.format},
                                {"config", checkpoint.config.to_json()},
                                {"parameters", parts},
                                {"ffn_share", static_cast<double>(parts["ffn"]) / static_cast<double>(all.parameters)},
                                {"tensors", all.tensors},
                                {"stored_bytes", all.bytes},
                                {"types", nlohmann::json::object()}};
  description["parameters"]["total"] = all.parameters;
  for (const auto& [type, total] : types) {
    description["types"][type] = {{"tensors", total.tensors}, {"parameters", total.parameters}, {"bytes", total.bytes}};
  }
  if (const auto& moe = checkpoint.config.moe) {
    const int64_t active = moe->num_shared_experts + moe->num_experts_per_tok;
    description["experts"] = fmt::format("S{}A{}E{}", moe->num_shared_experts, moe->num_experts_per_tok, moe->num_experts);
    description["active_fraction"] =
        static_cast<double>(active * moe->moe_intermediate_size) / static_cast<double>(checkpoint.config.intermediate_size);
  }
  return description;
}

}  // namespace cmoe

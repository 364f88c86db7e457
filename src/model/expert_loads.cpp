#include "model/expert_loads.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/read_file.h"

namespace cmoe {

std::string ExpertLoads::to_json_text() const {
  nlohmann::ordered_json json{{"tokens", tokens}, {"tokens_per_expert", layers}};
  return json.dump() + "\n";
}

ExpertLoads read_expert_loads(const Checkpoint& checkpoint) {
  const std::filesystem::path path = checkpoint.path / kExpertLoadsFile;
  CMOE_CHECK(
      std::filesystem::exists(path),
      "{}: is missing, and a balanced placement needs it; carve again by a recipe that routes its calibration tokens, or "
      "use --placement contiguous",
      path.string());
  ExpertLoads loads;
  try {
    const auto json = nlohmann::json::parse(read_file(path.string()));
    json.at("tokens").get_to(loads.tokens);
    json.at("tokens_per_expert").get_to(loads.layers);
  } catch (const nlohmann::json::exception& error) {
    fail("{}: {}; expected tokens and tokens_per_expert", path.string(), error.what());
  }
  const ModelConfig& config = checkpoint.config;
  const auto layers = static_cast<size_t>(config.num_hidden_layers);
  const auto experts = static_cast<size_t>(config.moe ? config.moe->num_routed_experts() : 0);
  CMOE_CHECK(loads.layers.size() == layers, "{}: has {} layers; expected {}", path.string(), loads.layers.size(), layers);
  for (size_t l = 0; l < layers; ++l) {
    CMOE_CHECK(loads.layers[l].size() == experts, "{}: layer {} has {} experts; expected {}", path.string(), l,
               loads.layers[l].size(), experts);
    for (int64_t load : loads.layers[l]) {
      CMOE_CHECK(load >= 0 && load <= loads.tokens, "{}: layer {} has an expert with {} of {} tokens", path.string(), l, load,
                 loads.tokens);
    }
  }
  return loads;
}

}  // namespace cmoe

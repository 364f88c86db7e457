#include "train/adapter_files.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/atomic_file.h"
#include "tensor/safetensors_writer.h"

namespace cmoe {
namespace {

// PEFT adapts every module whose whole path matches. Without the parent's name "gate_proj" would find the router's, too.
std::string target_pattern(const std::set<std::string>& targets) {
  const auto either = [&](std::initializer_list<const char*> names) {
    std::string text;
    for (const char* name : names) {
      if (targets.contains(name)) text += (text.empty() ? "" : "|") + std::string(name) + "_proj";
    }
    return text;
  };
  const std::string attention = either({"q", "k", "v", "o"}), ffn = either({"gate", "up", "down"});
  std::string pattern;
  if (!attention.empty()) pattern = "self_attn\\.(" + attention + ")";
  if (!ffn.empty())
    pattern += std::string(pattern.empty() ? "" : "|") + "mlp\\.((shared_experts|experts\\.\\d+)\\.)?(" + ffn + ")";
  return ".*\\.(" + pattern + ")";
}

nlohmann::ordered_json peft_config(const TrainedModel& model, const std::string& base_model, double dropout) {
  const TrainedParts& parts = model.parts();
  nlohmann::ordered_json ranks = nlohmann::ordered_json::object();
  constexpr std::string_view kModel = "model.", kA = ".lora_A";
  for (const Parameter& parameter : model.layout().all()) {
    if (!parameter.name.ends_with(kA) || parameter.shape[0] == parts.rank) continue;
    ranks[parameter.name.substr(kModel.size(), parameter.name.size() - kModel.size() - kA.size())] = parameter.shape[0];
  }
  return {{"peft_type", "LORA"},
          {"task_type", "CAUSAL_LM"},
          {"base_model_name_or_path", base_model},
          {"inference_mode", true},
          {"r", parts.rank},
          {"lora_alpha", parts.alpha},
          {"lora_dropout", dropout},
          {"use_rslora", parts.rslora},
          {"rank_pattern", ranks},
          {"target_modules", target_pattern(parts.lora_targets)},
          {"bias", "none"},
          {"fan_in_fan_out", false},
          {"init_lora_weights", true}};
}

}  // namespace

std::vector<std::string> write_adapter(const TrainedModel& model, const std::string& base_model, double dropout,
                                       const std::string& folder) {
  const Tensor values = model.collect_values();
  if (values.size() == 0) return {};
  std::vector<std::pair<std::string, Tensor>> adapters, routers;
  for (const Parameter& parameter : model.layout().all()) {
    const Tensor value = values.rows(parameter.place, parameter.place + parameter.size).reshape(parameter.shape);
    if (parameter.group == ParameterGroup::lora) {
      adapters.emplace_back("base_model.model." + parameter.name + ".weight", value);
    } else {
      routers.emplace_back(parameter.name, value);
    }
  }
  for (int64_t l = 0; model.parts().router_bias && model.parts().keep_router_bias && l < model.num_layers(); ++l) {
    const Router& router = model.router(l);
    const std::string prefix = fmt::format("model.layers.{}.mlp.router.", l);
    routers.emplace_back(prefix + "selection_bias", router.selection_bias);
    if (router.selector != Selector::threshold) continue;
    Tensor threshold(DType::f32, {1});
    threshold.data<float>()[0] = router.threshold;
    routers.emplace_back(prefix + "threshold", threshold);
  }
  const std::map<std::string, std::string> metadata{{"format", "pt"}};
  write_file_atomically(folder + "/adapter_model.safetensors", safetensors_bytes(adapters, metadata));
  write_file_atomically(folder + "/adapter_config.json", peft_config(model, base_model, dropout).dump(2) + "\n");
  std::vector<std::string> names{"adapter_model.safetensors", "adapter_config.json"};
  if (!routers.empty()) {
    write_file_atomically(folder + "/router.safetensors", safetensors_bytes(routers, metadata));
    names.emplace_back("router.safetensors");
  }
  return names;
}

}  // namespace cmoe

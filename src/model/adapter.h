#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "model/checkpoint.h"

namespace cmoe {

/// A LoRA adapter in PEFT's layout: adapter_config.json and adapter_model.safetensors, and beside them router.safetensors with
/// what PEFT has no place for (router scale, selection bias, threshold, trained router weights), under the model's names.
struct Adapter {
  struct Pair {
    Tensor a, b;  ///< [r, in], [out, r] f32
    double scale;
  };
  std::filesystem::path path;
  std::map<std::string, Pair> modules;    ///< by module path: "model.layers.0.self_attn.q_proj"
  std::map<std::string, Tensor> routers;  ///< by tensor name: "model.layers.0.mlp.router.scale"
};

/// @throws Error naming the file: missing, not LoRA, an option that is not merged (DoRA, biases), a half pair, ranks that do
/// not fit adapter_config.json.
Adapter read_adapter(const std::filesystem::path& folder);

/// The checkpoint as if the adapter had been merged: tensors are read as W + scale B A and the router's as the adapter has
/// them; the config tells of router tensors that the base does not have.
/// @throws Error when a module or shape of the adapter is not the checkpoint's: the wrong base model.
Checkpoint with_adapter(Checkpoint base, std::shared_ptr<const Adapter> adapter);

/// open_checkpoint(), with an adapter unless `adapter` is empty.
Checkpoint open_checkpoint(const std::filesystem::path& path, const std::string& adapter);

}  // namespace cmoe

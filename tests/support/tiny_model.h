#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "model/checkpoint.h"
#include "support/temporary_directory.h"
#include "tensor/safetensors_writer.h"

namespace cmoe {

/// The committed tiny models (tests/model/fixtures).
inline std::string fixture(const std::string& name) { return std::string(CMOE_SOURCE_DIR) + "/tests/model/fixtures/" + name; }

/// A safetensors file of f32 tensors.
inline void write_safetensors(const std::filesystem::path& path, const std::map<std::string, Tensor>& tensors) {
  std::vector<TensorSpec> specs;
  for (const auto& [name, tensor] : tensors) specs.push_back({name, DType::f32, tensor.shape()});
  std::string bytes;
  SafetensorsWriter writer(specs, {{"format", "pt"}}, [&](const void* data, int64_t size, int64_t offset) {
    bytes.resize(std::max(bytes.size(), static_cast<size_t>(offset + size)));
    std::copy_n(static_cast<const char*>(data), size, bytes.data() + offset);
  });
  for (const auto& [name, tensor] : tensors) writer.write(name, tensor);
  writer.finish();
  std::filesystem::remove(path);
  write_text(path.string(), bytes);
}

/// All tensors of a model as f32.
inline std::map<std::string, Tensor> read_tensors(const Checkpoint& checkpoint) {
  std::map<std::string, Tensor> tensors;
  for (const std::string& name : checkpoint.tensors->names()) {
    tensors[name] = checkpoint.tensors->read(name, checkpoint.tensors->shape(name), DType::f32).clone();
  }
  return tensors;
}

/// A copy of tiny-llama at `folder`, in f32, with tensors and config changed.
inline void write_tiny_variant(
    const std::string& folder,
    const std::function<void(std::map<std::string, Tensor>& tensors, nlohmann::json& config)>& change) {
  std::filesystem::copy(fixture("tiny-llama"), folder);
  std::map<std::string, Tensor> tensors = read_tensors(open_checkpoint(fixture("tiny-llama")));
  nlohmann::json config = nlohmann::json::parse(read_text(folder + "/config.json"));
  change(tensors, config);
  std::filesystem::remove(folder + "/config.json");
  write_text(folder + "/config.json", config.dump(2));
  write_safetensors(folder + "/model.safetensors", tensors);
}

}  // namespace cmoe

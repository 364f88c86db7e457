#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/sha256.h"
#include "model/config.h"
#include "tensor/tensor.h"

namespace cmoe {

/// Tensors by name, read on demand: nothing is read before it is asked for. Names are Hugging Face's
/// ("model.layers.3.mlp.up_proj.weight") whatever the file format.
class TensorSource {
 public:
  virtual ~TensorSource() = default;
  virtual std::vector<std::string> names() const = 0;
  virtual bool contains(const std::string& name) const = 0;
  /// The tensor's shape. @throws Error naming file and tensor when it is missing.
  virtual Shape shape(const std::string& name) const = 0;
  /// Bytes the tensor takes in its file, and the file's name for that type ("BF16", "Q4_1").
  virtual int64_t stored_bytes(const std::string& name) const = 0;
  virtual std::string stored_type(const std::string& name) const = 0;
  /// Path of the file that holds the tensor, for messages.
  virtual std::string file_of(const std::string& name) const = 0;
  /// Reads one tensor as f32 or bf16 (dequantised or converted). @throws Error when it is missing or its shape is not
  /// `expected`.
  virtual Tensor read(const std::string& name, const Shape& expected, DType as) const = 0;
  /// Adds to the hash what tells this tensor from another of its shape: hash_sample() of its stored bytes. Safe to call from
  /// several threads.
  virtual void hash_sample_of(const std::string& name, Sha256& hash) const = 0;
};

/// A model on disk: a Hugging Face folder, a GGUF file, or a folder that cmoe wrote.
struct Checkpoint {
  std::filesystem::path path;
  std::string format;  ///< "safetensors" or "gguf"
  ModelConfig config;
  std::unique_ptr<TensorSource> tensors;
};

/// Opens a checkpoint and checks its headers; reads no weights. @throws Error naming the file and what is wrong.
Checkpoint open_checkpoint(const std::filesystem::path& path);

}  // namespace cmoe

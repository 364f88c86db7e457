#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tensor/tensor.h"

namespace cmoe {

/// A tensor to be written.
struct TensorSpec {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
};

/// Writes a safetensors file whose tensors are known beforehand and arrive one at a time, in any order.
///
/// The layout is a function of the specs alone: wider types first, then by name, so that every tensor is aligned to its element
/// and the same model gives the same bytes. The data begins at a multiple of 8 bytes.
class SafetensorsWriter {
 public:
  /// Receives `bytes` bytes for position `offset` of the file; every byte of the file once, not in order.
  using Sink = std::function<void(const void* data, int64_t bytes, int64_t offset)>;

  /// Lays the file out and writes its header. @throws Error on a name given twice.
  SafetensorsWriter(const std::vector<TensorSpec>& tensors, const std::map<std::string, std::string>& metadata, Sink sink);

  /// Writes one tensor; f32, f16 and bf16 are converted to the promised dtype.
  /// @throws Error when its name was not promised, its shape differs, or it was written before.
  void write(const std::string& name, const Tensor& tensor);
  /// @throws Error naming a promised tensor that was not written.
  void finish() const;
  /// Size of the whole file.
  int64_t file_bytes() const { return file_bytes_; }

 private:
  struct Place {
    TensorSpec spec;
    int64_t offset = 0;
    bool written = false;
  };
  std::map<std::string, Place> places_;
  Sink sink_;
  int64_t file_bytes_ = 0;
};

/// The bytes of a safetensors file with these tensors.
std::string safetensors_bytes(const std::vector<std::pair<std::string, Tensor>>& tensors,
                              const std::map<std::string, std::string>& metadata);

}  // namespace cmoe

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace cmoe {

/// Parameters of one group share a learning rate.
enum class ParameterGroup : uint8_t { lora, router_scale, router };

/// A trained tensor's place in the flat vector of all of them.
struct Parameter {
  std::string name;  ///< Hugging Face's module path and what is trained: "model.layers.0.self_attn.q_proj.lora_A"
  Shape shape;
  ParameterGroup group;
  int64_t offset, size;
};

/// Everything that gradients train, as one flat f32 vector: sums over ranks, the optimiser and checkpoints see only that.
/// Gradients are other vectors of the same layout. The order is that of add(): it belongs to a checkpoint's format.
class ParameterSet {
 public:
  /// Returns the parameter's index. To be followed by allocate() once all are declared.
  int64_t add(std::string name, Shape shape, ParameterGroup group);
  /// Makes values(), all zero.
  void allocate() { values_ = Tensor::zeros(DType::f32, {size_}); }

  int64_t size() const { return size_; }
  const std::vector<Parameter>& all() const { return all_; }
  const Parameter& operator[](int64_t index) const { return all_[static_cast<size_t>(index)]; }
  const Tensor& values() const { return values_; }
  Tensor value(int64_t index) const { return view(values_, index); }
  /// The part of a flat vector that belongs to a parameter, in its shape; shares storage.
  Tensor view(const Tensor& flat, int64_t index) const;

 private:
  std::vector<Parameter> all_;
  int64_t size_ = 0;
  Tensor values_;
};

}  // namespace cmoe

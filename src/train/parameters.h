#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace cmoe {

/// Parameters of one group share a learning rate.
enum class ParameterGroup : uint8_t { lora, router_scale, router };

/// A trained tensor.
struct Parameter {
  std::string name;  ///< Hugging Face's module path and what is trained: "model.layers.0.self_attn.q_proj.lora_A"
  Shape shape;
  ParameterGroup group;
  int64_t offset, size;  ///< in the flat vector of its set
  int64_t place;         ///< in the layout: of its first element among those of the whole model
};

/// The parameters of a whole model one behind the other, whichever rank holds them: the same on all ranks. The order is that of
/// declaration; it belongs to a checkpoint's format.
class ParameterLayout {
 public:
  /// Returns the parameter's place.
  int64_t add(const std::string& name, const Shape& shape, ParameterGroup group);

  int64_t size() const { return size_; }
  const std::vector<Parameter>& all() const { return all_; }

 private:
  std::vector<Parameter> all_;
  int64_t size_ = 0;
};

/// Parameters that gradients train, as one flat f32 vector: sums over ranks and the optimiser see only that. Gradients are
/// other vectors of the same order, that of add().
class ParameterSet {
 public:
  /// @param layout  of the model, which the set's parameters join; must outlive add(). Without one the set is the whole model.
  explicit ParameterSet(ParameterLayout* layout = nullptr) : layout_(layout) {}

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
  ParameterLayout* layout_;
  std::vector<Parameter> all_;
  int64_t size_ = 0;
  Tensor values_;
};

}  // namespace cmoe

#include "train/parameters.h"

namespace cmoe {

int64_t ParameterSet::add(std::string name, Shape shape, ParameterGroup group) {
  int64_t size = 1;
  for (int64_t extent : shape) size *= extent;
  all_.push_back({std::move(name), std::move(shape), group, size_, size});
  size_ += size;
  return static_cast<int64_t>(all_.size()) - 1;
}

Tensor ParameterSet::view(const Tensor& flat, int64_t index) const {
  const Parameter& parameter = (*this)[index];
  return flat.rows(parameter.offset, parameter.offset + parameter.size).reshape(parameter.shape);
}

}  // namespace cmoe

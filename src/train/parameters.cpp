#include "train/parameters.h"

namespace cmoe {

namespace {

int64_t elements_of(const Shape& shape) {
  int64_t elements = 1;
  for (int64_t extent : shape) elements *= extent;
  return elements;
}

}  // namespace

int64_t ParameterLayout::add(const std::string& name, const Shape& shape, ParameterGroup group) {
  const int64_t place = size_, elements = elements_of(shape);
  all_.push_back({name, shape, group, place, elements, place});
  size_ += elements;
  return place;
}

int64_t ParameterSet::add(std::string name, Shape shape, ParameterGroup group) {
  const int64_t elements = elements_of(shape);
  const int64_t place = layout_ ? layout_->add(name, shape, group) : size_;
  all_.push_back({std::move(name), std::move(shape), group, size_, elements, place});
  size_ += elements;
  return static_cast<int64_t>(all_.size()) - 1;
}

Tensor ParameterSet::view(const Tensor& flat, int64_t index) const {
  const Parameter& parameter = (*this)[index];
  return flat.rows(parameter.offset, parameter.offset + parameter.size).reshape(parameter.shape);
}

}  // namespace cmoe

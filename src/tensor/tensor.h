#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "tensor/dtype.h"

namespace cmoe {

using Shape = std::vector<int64_t>;

/// "[32, 576]".
std::string to_string(const Shape& shape);

template <class T>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<T, float>) return DType::f32;
  if constexpr (std::is_same_v<T, double>) return DType::f64;
  if constexpr (std::is_same_v<T, int64_t>) return DType::i64;
  if constexpr (std::is_same_v<T, int32_t>) return DType::i32;
  if constexpr (std::is_same_v<T, uint16_t>) return DType::bf16;
  if constexpr (std::is_same_v<T, uint8_t>) return DType::u8;
}

/// A dense row-major array in host memory. Copies share the storage; clone() does not. 64-byte aligned.
class Tensor {
 public:
  Tensor() = default;

  /// Uninitialised storage.
  Tensor(DType dtype, Shape shape);

  /// Wraps memory that `owner` keeps alive (a file mapping, say).
  Tensor(DType dtype, Shape shape, std::shared_ptr<const void> owner, void* data);

  static Tensor zeros(DType dtype, Shape shape);

  bool defined() const { return data_ != nullptr || size() == 0; }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  int64_t dim(size_t axis) const { return shape_.at(axis); }
  /// Number of elements; 0 for a default-constructed tensor.
  int64_t size() const;
  int64_t bytes() const { return size() * size_of(dtype_); }

  template <class T>
  T* data() const {
    assert(dtype_of<T>() == dtype_ || (sizeof(T) == 2 && size_of(dtype_) == 2));
    return static_cast<T*>(data_);
  }
  void* raw() const { return data_; }
  template <class T>
  std::span<T> span() const {
    return {data<T>(), static_cast<size_t>(size())};
  }
  /// First element of row `index` of a tensor of rank >= 1.
  template <class T>
  T* row(int64_t index) const {
    return data<T>() + index * (shape_[0] == 0 ? 0 : size() / shape_[0]);
  }

  /// Rows [begin, end) of the first axis, sharing storage.
  Tensor rows(int64_t begin, int64_t end) const;
  /// The same elements under another shape of the same size.
  Tensor reshape(Shape shape) const;
  Tensor clone() const;
  /// Converted copy between f32, f16, bf16 and f64 (shares storage when the type is already right).
  Tensor to(DType dtype) const;

 private:
  DType dtype_ = DType::f32;
  Shape shape_{0};
  std::shared_ptr<const void> owner_;
  void* data_ = nullptr;
};

}  // namespace cmoe

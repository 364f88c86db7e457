#include "tensor/tensor.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "base/error.h"

namespace cmoe {
namespace {

int64_t product(const Shape& shape) {
  int64_t size = 1;
  for (int64_t extent : shape) size *= extent;
  return size;
}

uint16_t f32_to_f16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;            // rounds to infinity
  if (magnitude < 0x38800000u) {                                  // subnormal half: round to a multiple of 2^-24
    const float scaled = std::bit_cast<float>(magnitude) + 0.5f;  // f32 ulp at 0.5 is 2^-24
    return sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(scaled) - 0x3f000000u);
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return sign | static_cast<uint16_t>((rounded - 0x38000000u) >> 13);
}

float load(const Tensor& tensor, int64_t index) {
  switch (tensor.dtype()) {
    case DType::f32:
      return static_cast<const float*>(tensor.raw())[index];
    case DType::f64:
      return static_cast<float>(static_cast<const double*>(tensor.raw())[index]);
    case DType::bf16:
      return to_f32(static_cast<const uint16_t*>(tensor.raw())[index]);
    case DType::f16:
      return f16_to_f32(static_cast<const uint16_t*>(tensor.raw())[index]);
    default:
      fail_internal("tensor: {} has no conversion to floating point", name_of(tensor.dtype()));
  }
}

}  // namespace

std::string to_string(const Shape& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

Tensor::Tensor(DType dtype, Shape shape) : dtype_(dtype), shape_(std::move(shape)) {
  const int64_t bytes = product(shape_) * size_of(dtype);
  if (bytes == 0) return;
  // Large arrays on large pages: fewer page faults when they are made, fewer misses when they are streamed.
  constexpr int64_t kLargePage = int64_t{2} << 20;
  const int64_t alignment = bytes >= 2 * kLargePage ? kLargePage : 64;
  const int64_t rounded = (bytes + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(rounded));
  if (!memory) fail_internal("out of memory: a tensor {} {} needs {} MB", name_of(dtype), to_string(shape_), bytes / 1000000);
  if (alignment == kLargePage)
    ::madvise(memory, static_cast<size_t>(rounded), MADV_HUGEPAGE);  // a hint: refusal changes nothing
  owner_ = std::shared_ptr<const void>(memory, [](const void* p) { std::free(const_cast<void*>(p)); });
  data_ = memory;
}

Tensor::Tensor(DType dtype, Shape shape, std::shared_ptr<const void> owner, void* data)
    : dtype_(dtype), shape_(std::move(shape)), owner_(std::move(owner)), data_(data) {}

Tensor Tensor::zeros(DType dtype, Shape shape) {
  Tensor tensor(dtype, std::move(shape));
  if (tensor.bytes() > 0) std::memset(tensor.raw(), 0, static_cast<size_t>(tensor.bytes()));
  return tensor;
}

int64_t Tensor::size() const { return product(shape_); }

Tensor Tensor::rows(int64_t begin, int64_t end) const {
  assert(0 <= begin && begin <= end && end <= shape_.at(0));
  Shape shape = shape_;
  const int64_t row_bytes = shape_[0] == 0 ? 0 : bytes() / shape_[0];
  shape[0] = end - begin;
  return Tensor(dtype_, std::move(shape), owner_, static_cast<std::byte*>(data_) + begin * row_bytes);
}

Tensor Tensor::reshape(Shape shape) const {
  if (product(shape) != size()) fail_internal("tensor: cannot view {} as {}", to_string(shape_), to_string(shape));
  return Tensor(dtype_, std::move(shape), owner_, data_);
}

Tensor Tensor::clone() const {
  Tensor copy(dtype_, shape_);
  if (bytes() > 0) std::memcpy(copy.raw(), data_, static_cast<size_t>(bytes()));
  return copy;
}

Tensor Tensor::to(DType dtype) const {
  if (dtype == dtype_) return *this;
  Tensor result(dtype, shape_);
  for (int64_t i = 0, n = size(); i < n; ++i) {
    const float value = load(*this, i);
    switch (dtype) {
      case DType::f32:
        result.data<float>()[i] = value;
        break;
      case DType::f64:
        result.data<double>()[i] = value;
        break;
      case DType::bf16:
        static_cast<uint16_t*>(result.raw())[i] = to_bf16(value);
        break;
      case DType::f16:
        static_cast<uint16_t*>(result.raw())[i] = f32_to_f16(value);
        break;
      default:
        fail_internal("tensor: no conversion from {} to {}", name_of(dtype_), name_of(dtype));
    }
  }
  return result;
}

}  // namespace cmoe

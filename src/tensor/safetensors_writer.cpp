#include "tensor/safetensors_writer.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "base/error.h"

namespace cmoe {
namespace {

std::string file_word(DType type) {
  switch (type) {
    case DType::f32:
      return "F32";
    case DType::f16:
      return "F16";
    case DType::bf16:
      return "BF16";
    case DType::f64:
      return "F64";
    case DType::i64:
      return "I64";
    case DType::i32:
      return "I32";
    case DType::i16:
      return "I16";
    case DType::i8:
      return "I8";
    case DType::u8:
      return "U8";
    case DType::boolean:
      return "BOOL";
  }
  fail_internal("safetensors: unknown dtype");
}

int64_t bytes_of(const TensorSpec& spec) {
  int64_t bytes = size_of(spec.dtype);
  for (int64_t extent : spec.shape) bytes *= extent;
  return bytes;
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::vector<TensorSpec>& tensors, const std::map<std::string, std::string>& metadata,
                                     Sink sink)
    : sink_(std::move(sink)) {
  std::vector<TensorSpec> order = tensors;
  std::sort(order.begin(), order.end(), [](const TensorSpec& a, const TensorSpec& b) {
    return std::tuple(-size_of(a.dtype), std::string_view(a.name)) < std::tuple(-size_of(b.dtype), std::string_view(b.name));
  });
  nlohmann::ordered_json header;
  if (!metadata.empty()) header["__metadata__"] = metadata;
  int64_t offset = 0;
  for (const TensorSpec& spec : order) {
    if (!places_.emplace(spec.name, Place{spec, offset, false}).second) {
      fail_internal("safetensors: tensor '{}' is listed twice", spec.name);
    }
    const int64_t end = offset + bytes_of(spec);
    header[spec.name] = {{"dtype", file_word(spec.dtype)}, {"shape", spec.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.is_null() ? "{}" : header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  const auto data_begin = static_cast<int64_t>(8 + length);
  for (auto& [name, place] : places_) place.offset += data_begin;
  file_bytes_ = data_begin + offset;
  sink_(&length, 8, 0);
  sink_(text.data(), static_cast<int64_t>(length), 8);
}

void SafetensorsWriter::write(const std::string& name, const Tensor& tensor) {
  const auto found = places_.find(name);
  if (found == places_.end()) fail_internal("safetensors: tensor '{}' was not promised to this file", name);
  Place& place = found->second;
  if (place.written) fail_internal("safetensors: tensor '{}' is written twice", name);
  if (tensor.shape() != place.spec.shape) {
    fail_internal("safetensors: tensor '{}' has shape {}, expected {}", name, to_string(tensor.shape()),
                  to_string(place.spec.shape));
  }
  const Tensor converted = tensor.to(place.spec.dtype);
  if (converted.bytes() > 0) sink_(converted.raw(), converted.bytes(), place.offset);
  place.written = true;
}

void SafetensorsWriter::finish() const {
  for (const auto& [name, place] : places_) {
    if (!place.written) fail_internal("safetensors: tensor '{}' was promised and not written", name);
  }
}

std::string safetensors_bytes(const std::vector<std::pair<std::string, Tensor>>& tensors,
                              const std::map<std::string, std::string>& metadata) {
  std::vector<TensorSpec> specs;
  for (const auto& [name, tensor] : tensors) specs.push_back({name, tensor.dtype(), tensor.shape()});
  std::string bytes;
  SafetensorsWriter writer(specs, metadata, [&](const void* data, int64_t size, int64_t offset) {
    const auto end = static_cast<size_t>(offset + size);
    if (bytes.size() < end) bytes.resize(end);
    std::memcpy(bytes.data() + offset, data, static_cast<size_t>(size));
  });
  bytes.resize(static_cast<size_t>(writer.file_bytes()));
  for (const auto& [name, tensor] : tensors) writer.write(name, tensor);
  writer.finish();
  return bytes;
}

}  // namespace cmoe

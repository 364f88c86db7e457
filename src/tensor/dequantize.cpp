#include "tensor/dequantize.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "base/parallel.h"

namespace cmoe {
namespace {

constexpr int kBlock = 32;
constexpr int64_t kGrain = 4096;              // weights a thread decodes at a time
constexpr int64_t kPiece = int64_t{1} << 22;  // weights read from the file at a time

uint16_t load_u16(const uint8_t* bytes) {
  uint16_t value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

void decode_q8_0(const uint8_t* block, float* w) {
  const float d = f16_to_f32(load_u16(block));
  const auto* q = reinterpret_cast<const int8_t*>(block + 2);
  for (int i = 0; i < kBlock; ++i) w[i] = d * static_cast<float>(q[i]);
}

void decode_q4_0(const uint8_t* block, float* w) {
  const float d = f16_to_f32(load_u16(block));
  const uint8_t* q = block + 2;
  for (int i = 0; i < kBlock / 2; ++i) {
    w[i] = d * static_cast<float>((q[i] & 15) - 8);
    w[i + kBlock / 2] = d * static_cast<float>((q[i] >> 4) - 8);
  }
}

void decode_q4_1(const uint8_t* block, float* w) {
  const float d = f16_to_f32(load_u16(block)), m = f16_to_f32(load_u16(block + 2));
  const uint8_t* q = block + 4;
  for (int i = 0; i < kBlock / 2; ++i) {
    w[i] = d * static_cast<float>(q[i] & 15) + m;
    w[i + kBlock / 2] = d * static_cast<float>(q[i] >> 4) + m;
  }
}

// Decodes into an f32 or bf16 destination; [begin, end) in weights, begin at a multiple of the block.
void decode_range(StoredType type, const uint8_t* source, int64_t begin, int64_t end, Tensor& to, int64_t to_begin) {
  const uint8_t* from = source + begin / block_elements(type) * block_bytes(type);
  if (to.dtype() == DType::f32) return decode(type, from, end - begin, to.data<float>() + to_begin + begin);
  float buffer[kGrain];
  decode(type, from, end - begin, buffer);
  bf16* out = to.data<bf16>() + to_begin + begin;
  for (int64_t i = 0; i < end - begin; ++i) out[i] = to_bf16(buffer[i]);
}

bool same_bits(StoredType type, DType as) {
  return (type == StoredType::F32 && as == DType::f32) || (type == StoredType::BF16 && as == DType::bf16);
}

}  // namespace

std::string_view name_of(StoredType type) {
  constexpr std::string_view names[] = {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"};
  return names[static_cast<int>(type)];
}

int64_t block_elements(StoredType type) { return type < StoredType::Q8_0 ? 1 : kBlock; }

int64_t block_bytes(StoredType type) {
  constexpr int64_t bytes[] = {4, 2, 2, 34, 18, 20};
  return bytes[static_cast<int>(type)];
}

void decode(StoredType type, const void* source, int64_t count, float* destination) {
  const auto* from = static_cast<const uint8_t*>(source);
  switch (type) {
    case StoredType::F32:
      std::memcpy(destination, from, static_cast<size_t>(count) * 4);
      return;
    case StoredType::F16:
      for (int64_t i = 0; i < count; ++i) destination[i] = f16_to_f32(load_u16(from + 2 * i));
      return;
    case StoredType::BF16:
      for (int64_t i = 0; i < count; ++i) destination[i] = to_f32(load_u16(from + 2 * i));
      return;
    case StoredType::Q8_0:
      for (int64_t i = 0; i < count; i += kBlock, from += 34) decode_q8_0(from, destination + i);
      return;
    case StoredType::Q4_0:
      for (int64_t i = 0; i < count; i += kBlock, from += 18) decode_q4_0(from, destination + i);
      return;
    case StoredType::Q4_1:
      for (int64_t i = 0; i < count; i += kBlock, from += 20) decode_q4_1(from, destination + i);
      return;
  }
}

Tensor read_stored(const InputFile& file, int64_t offset, StoredType type, const Shape& shape, DType as) {
  if (as != DType::f32 && as != DType::bf16)
    fail_internal("{}: weights are read as f32 or bf16, not as {}", file.name(), name_of(as));
  Tensor tensor(as, shape);
  const int64_t count = tensor.size();
  if (count % block_elements(type) != 0) {
    fail_internal("{}: {} weights are no whole number of {} blocks", file.name(), count, name_of(type));
  }
  if (same_bits(type, as)) {
    if (count > 0) file.read(tensor.raw(), tensor.bytes(), offset);
    return tensor;
  }
  std::vector<uint8_t> piece;
  for (int64_t begin = 0; begin < count; begin += kPiece) {
    const int64_t weights = std::min(kPiece, count - begin);
    const int64_t bytes = weights / block_elements(type) * block_bytes(type);
    piece.resize(static_cast<size_t>(bytes));
    file.read(piece.data(), bytes, offset + begin / block_elements(type) * block_bytes(type));
    parallel_for(weights, kGrain, [&](int64_t from, int64_t to) { decode_range(type, piece.data(), from, to, tensor, begin); });
  }
  return tensor;
}

}  // namespace cmoe

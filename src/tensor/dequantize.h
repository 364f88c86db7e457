#pragma once

#include <cstdint>
#include <string_view>

#include "tensor/input_file.h"
#include "tensor/tensor.h"

namespace cmoe {

/// How weights lie in a file. The quantised types are ggml's; each block of 32 weights carries its own scale.
enum class StoredType : uint8_t { F32, F16, BF16, Q8_0, Q4_0, Q4_1 };

std::string_view name_of(StoredType type);  ///< "F32", "Q4_1"
int64_t block_elements(StoredType type);    ///< 1, or 32 for quantised types
int64_t block_bytes(StoredType type);       ///< bytes of one such block

/// Decodes `count` weights (a multiple of the block) to f32.
///   q8_0: f16 d, i8 q[32]                    w_i = d q_i
///   q4_0: f16 d, u8 q[16]                    w_i = d (n_i - 8)
///   q4_1: f16 d, f16 m, u8 q[16]             w_i = d n_i + m
/// where n_i is the low half of byte i for i < 16 and the high half of byte i - 16 for the rest.
/// d is an f16 and q has at most 8 bits, so d q is exact in f32 and only the sum with m rounds.
void decode(StoredType type, const void* source, int64_t count, float* destination);

/// Reads a tensor of `shape` that lies at `offset` of `file` as `type`, converted to f32 or bf16. The last axis of a quantised
/// tensor is a multiple of its block. Memory beyond the result: one piece of a few MB.
Tensor read_stored(const InputFile& file, int64_t offset, StoredType type, const Shape& shape, DType as);

}  // namespace cmoe

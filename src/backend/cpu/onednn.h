#pragma once

#include <memory>
#include <string>

#include "backend/cpu/packed_weight.h"

namespace cmoe::cpu {

/// Whether oneDNN would multiply bf16 by AMX here (CPU, operating system and ONEDNN_MAX_CPU_ISA permitting).
bool onednn_has_amx();

/// Whether oneDNN has bf16 products at all: it throws below AVX-512.
bool onednn_has_bf16();

/// "2.6.3".
std::string onednn_version();

/// `weight` [n, k] bf16, packed for oneDNN's matmul. Rows of x are rounded to bf16 and multiplied in tiles padded to a few
/// fixed heights (each height is a compiled primitive); each call runs on the calling thread alone. A row's bits may depend on
/// the height of its tile.
std::shared_ptr<const PackedWeight> make_onednn_weight(const Tensor& weight);

}  // namespace cmoe::cpu

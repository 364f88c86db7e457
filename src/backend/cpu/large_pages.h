#pragma once

#include "tensor/tensor.h"

namespace cmoe::cpu {

/// `bytes` of u8 for weights, from 32 MiB chunks on pages of 2 MiB: with pages of 4 KiB a core reads memory a third slower.
/// A chunk is given back when the last tensor in it goes. Small requests get memory of their own, so that they hold no chunk.
/// Thread-safe.
Tensor allocate_on_large_pages(int64_t bytes);

}  // namespace cmoe::cpu

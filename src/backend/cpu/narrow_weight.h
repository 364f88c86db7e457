#pragma once

#include "backend/backend.h"

namespace cmoe::cpu {

/// A weight with a short side, as [short side, long side] f32: W itself where out_features is the short one, else W^T.
struct NarrowWeight : Weight::Impl {
  Tensor matrix;
  bool transposed = false;
};

/// Longest short side that the kernels of narrow products are good for.
inline constexpr int64_t kNarrow = 32;

}  // namespace cmoe::cpu

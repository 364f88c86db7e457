#pragma once

#include <cstdint>
#include <vector>

#include "tensor/tensor.h"

namespace cmoe {

/// The permutation p that maximises sum_i gain[i, p(i)]: column p(i) of each row. gain [n, n] f32, finite. O(n^3).
/// Source: Jonker and Volgenant (1987), shortest augmenting paths; "A Closer Look into MoE" (arXiv:2406.18219), reordering of
/// neurons.
std::vector<int32_t> assign_rows(const Tensor& gain);

}  // namespace cmoe

#pragma once

#include <cstdint>
#include <span>

#include "comm/communicator.h"

namespace cmoe {

/// The k-th largest (k >= 1) of the floats of all ranks, exactly, by counting: four rounds of 256 buckets over the ordered
/// bits, so nothing but counts travels and any number of ranks gives the same value. Collective.
/// @throws Error when fewer than k values exist or one is NaN.
float kth_largest(std::span<const float> values, int64_t k, Communicator& comm);

}  // namespace cmoe

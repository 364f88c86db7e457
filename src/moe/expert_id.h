#pragma once

#include <cstdint>

namespace cmoe {

/// A routed expert of a layer, 0 .. num_routed_experts - 1, the same on every rank.
enum class GlobalExpert : int32_t {};

/// A routed expert among those that one rank holds, in ascending order of their global ids.
enum class LocalExpert : int32_t {};

constexpr int32_t index_of(GlobalExpert expert) { return static_cast<int32_t>(expert); }
constexpr int32_t index_of(LocalExpert expert) { return static_cast<int32_t>(expert); }

}  // namespace cmoe

#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace cmoe {

/// The set of routed experts of every token, ragged: token t takes expert_idx[expert_offset[t] .. expert_offset[t + 1]),
/// ascending. Fixed top-k is the special case of equal rows; an empty row is ordinary (the token takes no routed expert).
struct Routing {
  std::vector<int32_t> expert_offset{0};  ///< [T + 1]
  std::vector<int32_t> expert_idx;        ///< [expert_offset[T]] in [0, num_routed_experts)
  std::vector<float> weight;              ///< [expert_offset[T]]: the factor of each expert's output (1 unless a router scale was trained)

  int64_t tokens() const { return static_cast<int64_t>(expert_offset.size()) - 1; }
  std::span<const int32_t> experts(int64_t token) const {
    return {expert_idx.data() + expert_offset[static_cast<size_t>(token)],
            expert_idx.data() + expert_offset[static_cast<size_t>(token) + 1]};
  }
};

}  // namespace cmoe

#pragma once

#include <cstdint>
#include <vector>

#include "moe/routing.h"

namespace cmoe {

/// The (token, expert) pairs of a routing, sorted by expert and inside one by token: the rows that each expert works on.
struct Grouping {
  std::vector<int64_t> expert_begin;  ///< [R + 1] offsets into the grouped rows
  std::vector<int32_t> row_token;     ///< [pairs] token of each grouped row
  std::vector<int32_t> pair_row;      ///< [pairs] grouped row of each pair of the routing
};

Grouping group_by_expert(const Routing& routing, int64_t experts);

}  // namespace cmoe

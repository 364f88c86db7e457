#include "train/grouping.h"

namespace cmoe {

Grouping group_by_expert(const Routing& routing, int64_t experts) {
  Grouping grouping;
  grouping.expert_begin.assign(static_cast<size_t>(experts) + 1, 0);
  for (int32_t expert : routing.expert_idx) ++grouping.expert_begin[static_cast<size_t>(expert) + 1];
  for (size_t e = 0; e < static_cast<size_t>(experts); ++e) grouping.expert_begin[e + 1] += grouping.expert_begin[e];
  grouping.row_token.resize(routing.expert_idx.size());
  grouping.pair_row.resize(routing.expert_idx.size());
  std::vector<int64_t> next(grouping.expert_begin.begin(), grouping.expert_begin.end() - 1);
  for (int64_t t = 0; t < routing.tokens(); ++t) {
    for (int32_t pair = routing.expert_offset[static_cast<size_t>(t)]; pair < routing.expert_offset[static_cast<size_t>(t) + 1];
         ++pair) {
      const auto row = static_cast<size_t>(next[static_cast<size_t>(routing.expert_idx[static_cast<size_t>(pair)])]++);
      grouping.row_token[row] = static_cast<int32_t>(t);
      grouping.pair_row[static_cast<size_t>(pair)] = static_cast<int32_t>(row);
    }
  }
  return grouping;
}

}  // namespace cmoe

#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/error.h"

namespace cmoe {

/// label [n] that puts each seed alone into its cluster and the other items into none (-1): the first centroids of a clustering
/// are the means of these one-item clusters.
/// @throws Error  on a seed outside [0, n) or named twice.
inline std::vector<int32_t> label_seeds(std::span<const int32_t> seeds, int64_t n) {
  std::vector<int32_t> label(static_cast<size_t>(n), -1);
  for (size_t j = 0; j < seeds.size(); ++j) {
    CMOE_CHECK(seeds[j] >= 0 && seeds[j] < n, "clustering: seed {} is item {}, expected 0 to {}", j, seeds[j], n - 1);
    CMOE_CHECK(label[static_cast<size_t>(seeds[j])] < 0, "clustering: item {} is the seed of clusters {} and {}", seeds[j],
               label[static_cast<size_t>(seeds[j])], j);
    label[static_cast<size_t>(seeds[j])] = static_cast<int32_t>(j);
  }
  return label;
}

}  // namespace cmoe

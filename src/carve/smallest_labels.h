#pragma once

#include <cstdint>
#include <span>

namespace cmoe {

/// Turns one optimal balanced assignment into the optimal one with the lexicographically smallest labels.
///
/// @param cost           [n, clusters] row-major.
/// @param item_price     u [n], @param cluster_price v [clusters]: optimal dual prices; an assignment of the same cluster sizes
/// is
///                       optimal exactly when it uses pairs with cost[i,j] = u[i] + v[j] alone (complementary slackness).
/// @param label          [n] an optimal assignment, changed in place; cluster sizes stay.
void take_smallest_labels(std::span<const int64_t> cost, int64_t clusters, std::span<const int64_t> item_price,
                          std::span<const int64_t> cluster_price, std::span<int32_t> label);

}  // namespace cmoe

#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace cmoe {

/// An optimal balanced assignment and the proof of its optimality.
struct BalancedAssignment {
  std::vector<int32_t> label;          ///< [n] cluster of each item
  std::vector<int64_t> item_price;     ///< u [n]
  std::vector<int64_t> cluster_price;  ///< v [R]; cost[i,j] >= u[i] + v[j] everywhere, with equality where label[i] = j
  int64_t total_cost = 0;              ///< sum of cost[i, label[i]] = sum u[i] + sum capacity[j] v[j]
};

/// Assigns every item to one cluster, capacity[j] items to cluster j, at the least total cost: exactly, in integers.
///
/// Ties: among all optimal assignments the result is the one whose sequence of labels (label[0], label[1], ...) is
/// lexicographically smallest. So it depends on the costs alone, and a term common to a row or to a column changes nothing.
///
/// Memory O(n R). Time O(n R log n) for the usual case, O(n R (R + log n)) at worst.
///
/// @param cost      [n, clusters] row-major; any integers of magnitude below 2^62 / max(n, 4 clusters).
/// @param capacity  [clusters] of numbers >= 0 whose sum is n.
/// @throws Error    on sizes that do not fit together, capacities that do not sum to n, a cost too large to add up.
///
/// Method: min-cost flow over the R clusters (successive shortest paths). The edge a -> b weighs what it costs to move the
/// cheapest item of a to b; one heap per ordered pair of clusters keeps it. First prices come from solving a sample of the
/// items. Solves the linear assignment of CMoE (arXiv:2502.04416v3, section on balanced k-means), which there repeats each
/// column n/R times and runs Jonker-Volgenant on the dense n x n matrix.
BalancedAssignment assign_balanced(std::span<const int64_t> cost, int64_t n, int64_t clusters,
                                   std::span<const int64_t> capacity);

}  // namespace cmoe

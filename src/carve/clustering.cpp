#include "carve/clustering.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "carve/balanced_assignment.h"

namespace cmoe {
namespace {

template <class T>
std::vector<int32_t> largest(std::span<const T> rate, int64_t count) {
  CMOE_CHECK(count >= 0 && count <= static_cast<int64_t>(rate.size()), "highest_rate_seeds: {} seeds of {} items", count,
             rate.size());
  std::vector<int32_t> order(rate.size());
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + count, order.end(),
                    [&](int32_t a, int32_t b) { return rate[a] != rate[b] ? rate[a] > rate[b] : a < b; });
  order.resize(static_cast<size_t>(count));
  return order;
}

// The first item of each cluster that `better` puts before all others of it.
template <class Better>
std::vector<int32_t> best_items(const Clusters& clusters, Better better) {
  std::vector<int32_t> best(static_cast<size_t>(clusters.clusters), -1);
  for (size_t i = 0; i < clusters.label.size(); ++i) {
    int32_t& now = best[static_cast<size_t>(clusters.label[i])];
    if (now < 0 || better(i, static_cast<size_t>(now))) now = static_cast<int32_t>(i);
  }
  return best;
}

}  // namespace

Clusters cluster_balanced(std::span<const int64_t> first, int64_t n, int64_t clusters, int64_t rounds,
                          const std::function<std::vector<int64_t>(std::span<const int32_t> label)>& distances_to) {
  CMOE_CHECK(clusters >= 1 && n % clusters == 0, "cluster_balanced: {} items do not divide into {} clusters of equal size", n,
             clusters);
  CMOE_CHECK(rounds >= 1, "cluster_balanced: {} rounds, expected at least 1", rounds);
  const std::vector<int64_t> capacity(static_cast<size_t>(clusters), n / clusters);
  BalancedAssignment assignment = assign_balanced(first, n, clusters, capacity);

  Clusters result;
  result.clusters = clusters;
  result.label = std::move(assignment.label);
  result.objective.push_back(assignment.total_cost);
  std::vector<int64_t> distance;
  for (int64_t round = 1;; ++round) {
    distance = distances_to(result.label);
    if (round == rounds) break;
    assignment = assign_balanced(distance, n, clusters, capacity);
    result.objective.push_back(assignment.total_cost);
    if (assignment.label == result.label) {
      result.converged = true;
      break;
    }
    result.label = std::move(assignment.label);
  }
  for (int64_t i = 0; i < n; ++i) result.distance.push_back(distance[i * clusters + result.label[i]]);
  return result;
}

std::vector<int32_t> nearest_items(const Clusters& clusters) {
  return best_items(clusters, [&](size_t a, size_t b) { return clusters.distance[a] < clusters.distance[b]; });
}

std::vector<int32_t> highest_rate_items(const Clusters& clusters, std::span<const int64_t> rate) {
  CMOE_CHECK(rate.size() == clusters.label.size(), "highest_rate_items: {} rates, expected one for each of {} items",
             rate.size(), clusters.label.size());
  return best_items(clusters, [&](size_t a, size_t b) { return rate[a] > rate[b]; });
}

std::vector<int32_t> highest_rate_seeds(std::span<const int64_t> rate, int64_t count) { return largest(rate, count); }
std::vector<int32_t> highest_rate_seeds(std::span<const double> rate, int64_t count) { return largest(rate, count); }

}  // namespace cmoe

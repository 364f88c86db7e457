#include <cmath>

#include "carve/clustering.h"
#include "carve/seeds.h"

namespace cmoe {
namespace {

// S [n, R], K [R] and Q [R] of the header, for clusters of the members in `label` (-1: in none), summed over the ranks.
struct Products {
  std::vector<int64_t> values;  // S, then K, then Q: one reduction
  int64_t n, clusters;
  int64_t overlap(int64_t i, int64_t j) const { return values[i * clusters + j]; }
  int64_t sum(int64_t j) const { return values[n * clusters + j]; }
  int64_t square_sum(int64_t j) const { return values[(n + 1) * clusters + j]; }
};

Products multiply(const SparseBits& bits, std::span<const int32_t> label, int64_t clusters, Communicator& comm) {
  const int64_t n = bits.columns;
  Products result{std::vector<int64_t>(static_cast<size_t>((n + 2) * clusters), 0), n, clusters};
  int64_t* sum = result.values.data() + n * clusters;
  int64_t* square_sum = sum + clusters;
  std::vector<int64_t> count(static_cast<size_t>(clusters), 0);  // k[t, j] of one token
  std::vector<int32_t> present;                                  // its clusters with k > 0
  for (int64_t t = 0; t < bits.rows; ++t) {
    for (int32_t i : bits.row(t)) {
      const int32_t j = label[static_cast<size_t>(i)];
      if (j >= 0 && count[static_cast<size_t>(j)]++ == 0) present.push_back(j);
    }
    for (int32_t i : bits.row(t)) {
      int64_t* overlap = result.values.data() + i * clusters;
      for (int32_t j : present) overlap[j] += count[static_cast<size_t>(j)];
    }
    for (int32_t j : present) {
      const int64_t k = count[static_cast<size_t>(j)];
      sum[j] += k;
      square_sum[j] += k * k;
      count[static_cast<size_t>(j)] = 0;
    }
    present.clear();
  }
  comm.all_reduce_sum(std::span(result.values));
  return result;
}

// Distances [n, R] in units that depend on the full cluster size m, from centroids that are counts over `members` (1 for seeds,
// else m).
std::vector<int64_t> distances(const Products& products, std::span<const int64_t> marked, MarkerDistance distance,
                               int64_t members, int64_t m) {
  std::vector<int64_t> result;
  result.reserve(static_cast<size_t>(products.n * products.clusters));
  const int64_t scale = m / members;  // brings units of 1 / members to units of 1 / m
  for (int64_t i = 0; i < products.n; ++i) {
    for (int64_t j = 0; j < products.clusters; ++j) {
      const int64_t overlap = scale * products.overlap(i, j);
      if (distance == MarkerDistance::l1) {
        result.push_back(scale * products.sum(j) + m * marked[i] - 2 * overlap);
        continue;
      }
      const int64_t squared = scale * scale * products.square_sum(j) + m * m * marked[i] - 2 * m * overlap;
      // IEEE square roots are correctly rounded, so this is the same number everywhere.
      result.push_back(distance == MarkerDistance::squared_l2 ? squared
                                                              : std::llround(std::sqrt(static_cast<double>(squared)) * 0x1p14));
    }
  }
  return result;
}

}  // namespace

Clusters cluster_markers(const SparseBits& bits, std::span<const int32_t> seeds, MarkerDistance distance, int64_t rounds,
                         Communicator& comm) {
  const int64_t n = bits.columns;
  const auto clusters = static_cast<int64_t>(seeds.size());
  CMOE_CHECK(clusters >= 1 && n % clusters == 0, "cluster_markers: {} neurons do not divide into {} clusters of equal size", n,
             clusters);
  const int64_t m = n / clusters;
  const std::vector<int32_t> seed_label = label_seeds(seeds, n);
  std::vector<int64_t> marked = count_marks(bits.column, n);
  comm.all_reduce_sum(std::span(marked));

  // Round 1: the centroids are the seeds' own columns, counts over one member.
  const std::vector<int64_t> first =
      distances(multiply(bits, seed_label, clusters, comm), marked, distance, 1, std::max<int64_t>(m, 1));
  return cluster_balanced(first, n, clusters, rounds, [&](std::span<const int32_t> label) {
    return distances(multiply(bits, label, clusters, comm), marked, distance, m, m);
  });
}

}  // namespace cmoe

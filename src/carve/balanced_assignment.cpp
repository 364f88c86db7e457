#include "carve/balanced_assignment.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "carve/smallest_labels.h"

namespace cmoe {
namespace {

constexpr int64_t kInfinity = std::numeric_limits<int64_t>::max();

// A min-cost flow of single items over the clusters. Invariant: under `price` every item sits in a cluster of least reduced
// cost cost[i,j] - price[j]; so no cycle of moves lowers the total, and when no cluster is over its capacity the assignment is
// optimal.
class ClusterFlow {
 public:
  ClusterFlow(std::span<const int64_t> cost, int64_t n, int64_t clusters, std::span<const int64_t> capacity,
              std::vector<int64_t> price)
      : cost_(cost), n_(n), r_(clusters), capacity_(capacity), price_(std::move(price)) {
    place_items();
    heaps_.resize(static_cast<size_t>(r_ * r_));
    built_.assign(static_cast<size_t>(r_), false);
    moves_of_.assign(static_cast<size_t>(n_), 0);
  }

  void solve() {
    while (find_path()) {
      // The whole path is tight now; with many equal costs it carries more than one item.
      do {
        move_along_path();
      } while (surplus(source_) > 0 && surplus(target_) < 0 && path_is_tight());
    }
  }

  std::vector<int32_t>& label() { return label_; }
  std::vector<int64_t>& price() { return price_; }

 private:
  struct Move {
    int64_t key;  // cost[i,b] - cost[i,a]: free of prices, so entries stay in order when prices change
    int32_t item;
    uint32_t moves;  // moves the item had made when the entry was written; the entry is stale when it has made more
  };
  // Heap order: the smallest key on top; of equal keys the larger item, which leaves the small ones where they are.
  static bool later(const Move& x, const Move& y) { return x.key != y.key ? x.key > y.key : x.item < y.item; }

  int64_t cost(int64_t i, int64_t j) const { return cost_[static_cast<size_t>(i * r_ + j)]; }
  int64_t surplus(int64_t j) const { return count_[j] - capacity_[j]; }

  // Each item goes to the smallest of its cheapest clusters that has room, or to the smallest of them.
  void place_items() {
    label_.resize(static_cast<size_t>(n_));
    count_.assign(static_cast<size_t>(r_), 0);
    for (int64_t i = 0; i < n_; ++i) {
      const int64_t* row = cost_.data() + i * r_;
      int64_t best = kInfinity, first = 0, roomy = -1;
      for (int64_t j = 0; j < r_; ++j) {
        const int64_t reduced = row[j] - price_[j];
        if (reduced > best) continue;
        if (reduced < best) {
          best = reduced;
          first = j;
          roomy = -1;
        }
        if (roomy < 0 && surplus(j) < 0) roomy = j;
      }
      const int64_t j = roomy >= 0 ? roomy : first;
      label_[i] = static_cast<int32_t>(j);
      ++count_[j];
    }
  }

  std::vector<Move>& heap(int64_t a, int64_t b) { return heaps_[static_cast<size_t>(a * r_ + b)]; }

  // The heaps out of a cluster are made when a path first asks for them: with good first prices many never are.
  void build_heaps(int64_t a) {
    built_[a] = true;
    for (int64_t b = 0; b < r_; ++b) {
      if (b != a) heap(a, b).reserve(static_cast<size_t>(count_[a]));
    }
    for (int64_t i = 0; i < n_; ++i) {
      if (label_[i] != a) continue;
      const int64_t* row = cost_.data() + i * r_;
      for (int64_t b = 0; b < r_; ++b) {
        if (b != a) heap(a, b).push_back({row[b] - row[a], static_cast<int32_t>(i), moves_of_[i]});
      }
    }
    for (int64_t b = 0; b < r_; ++b) std::make_heap(heap(a, b).begin(), heap(a, b).end(), later);
  }

  bool stale(const Move& move, int64_t a) const { return label_[move.item] != a || moves_of_[move.item] != move.moves; }

  // The best move from a to b, or nothing when a is empty. Valid until the next change of a heap.
  const Move* top(int64_t a, int64_t b) {
    std::vector<Move>& moves = heap(a, b);
    while (!moves.empty() && stale(moves.front(), a)) {
      std::pop_heap(moves.begin(), moves.end(), later);
      moves.pop_back();
    }
    return moves.empty() ? nullptr : &moves.front();
  }

  void push(int64_t a, int64_t b, Move move) {
    std::vector<Move>& moves = heap(a, b);
    // Stale entries never outnumber the live ones by more than this, which keeps the memory at O(n R).
    if (static_cast<int64_t>(moves.size()) > 2 * count_[a] + 64) {
      std::erase_if(moves, [&](const Move& m) { return stale(m, a); });
      std::make_heap(moves.begin(), moves.end(), later);
    }
    moves.push_back(move);
    std::push_heap(moves.begin(), moves.end(), later);
  }

  // Dijkstra from all clusters with a surplus to the nearest one with room. Raises the prices so that the path becomes tight.
  // @return false when no cluster has a surplus.
  bool find_path() {
    distance_.assign(static_cast<size_t>(r_), kInfinity);
    parent_.assign(static_cast<size_t>(r_), -1);
    settled_.assign(static_cast<size_t>(r_), false);
    for (int64_t j = 0; j < r_; ++j) {
      if (surplus(j) > 0) distance_[j] = 0;
    }
    for (;;) {
      int64_t a = -1;
      for (int64_t j = 0; j < r_; ++j) {
        if (!settled_[j] && distance_[j] != kInfinity && (a < 0 || distance_[j] < distance_[a])) a = j;
      }
      if (a < 0) return false;
      settled_[a] = true;
      if (surplus(a) < 0) {
        target_ = a;
        break;
      }
      if (!built_[a]) build_heaps(a);
      for (int64_t b = 0; b < r_; ++b) {
        if (settled_[b]) continue;
        const Move* move = top(a, b);
        if (!move) break;  // a is empty
        const int64_t through = distance_[a] + move->key + price_[a] - price_[b];
        if (through < distance_[b]) {
          distance_[b] = through;
          parent_[b] = a;
        }
      }
    }
    for (int64_t j = 0; j < r_; ++j) price_[j] += std::min(distance_[j], distance_[target_]);
    for (source_ = target_; parent_[source_] >= 0;) source_ = parent_[source_];
    return true;
  }

  bool path_is_tight() {
    for (int64_t b = target_; b != source_; b = parent_[b]) {
      const Move* move = top(parent_[b], b);
      if (!move || move->key + price_[parent_[b]] != price_[b]) return false;
    }
    return true;
  }

  void move_along_path() {
    // From the end, so that no item moves twice.
    for (int64_t b = target_; b != source_; b = parent_[b]) {
      const int64_t a = parent_[b];
      const int64_t i = top(a, b)->item;
      label_[i] = static_cast<int32_t>(b);
      ++moves_of_[i];
      --count_[a];
      ++count_[b];
      if (!built_[b]) continue;
      for (int64_t c = 0; c < r_; ++c) {
        if (c != b) push(b, c, {cost(i, c) - cost(i, b), static_cast<int32_t>(i), moves_of_[i]});
      }
    }
  }

  std::span<const int64_t> cost_;
  int64_t n_, r_;
  std::span<const int64_t> capacity_;
  std::vector<int64_t> price_;            // [R] v
  std::vector<int32_t> label_;            // [n]
  std::vector<int64_t> count_;            // [R] items in each cluster
  std::vector<std::vector<Move>> heaps_;  // [R, R]
  std::vector<bool> built_;               // [R]
  std::vector<uint32_t> moves_of_;        // [n]
  // The last path.
  std::vector<int64_t> distance_, parent_;
  std::vector<bool> settled_;
  int64_t source_ = 0, target_ = 0;
};

// Prices that balance every fourth item are close to those that balance all: what is left to move is of the order of
// sqrt(n R) items rather than n. Recursive; the smallest sample starts from zero.
std::vector<int64_t> sample_prices(std::span<const int64_t> cost, int64_t n, int64_t clusters,
                                   std::span<const int64_t> capacity) {
  constexpr int64_t kStride = 4;
  const int64_t sample = n / kStride;
  if (sample < 8 * clusters) return std::vector<int64_t>(static_cast<size_t>(clusters), 0);
  std::vector<int64_t> sample_cost(static_cast<size_t>(sample * clusters)), sample_capacity(static_cast<size_t>(clusters));
  for (int64_t i = 0; i < sample; ++i) {
    std::copy_n(cost.data() + i * kStride * clusters, clusters, sample_cost.data() + i * clusters);
  }
  // Differences of the scaled running sums add up to the size of the sample.
  int64_t running = 0, given = 0;
  for (int64_t j = 0; j < clusters; ++j) {
    running += capacity[j];
    const int64_t upto = running * sample / n;
    sample_capacity[j] = upto - given;
    given = upto;
  }
  ClusterFlow flow(sample_cost, sample, clusters, sample_capacity,
                   sample_prices(sample_cost, sample, clusters, sample_capacity));
  flow.solve();
  return std::move(flow.price());
}

void check_arguments(std::span<const int64_t> cost, int64_t n, int64_t clusters, std::span<const int64_t> capacity) {
  CMOE_CHECK(n >= 0 && n <= std::numeric_limits<int32_t>::max(), "assign_balanced: {} items; expected 0 to 2^31 - 1", n);
  CMOE_CHECK(clusters >= 1, "assign_balanced: {} clusters; expected at least 1", clusters);
  CMOE_CHECK(static_cast<int64_t>(cost.size()) == n * clusters,
             "assign_balanced: the cost matrix has {} elements, expected {} items x {} clusters = {}", cost.size(), n, clusters,
             n * clusters);
  CMOE_CHECK(static_cast<int64_t>(capacity.size()) == clusters,
             "assign_balanced: {} capacities, expected one for each of {} clusters", capacity.size(), clusters);
  int64_t room = 0;
  for (int64_t j = 0; j < clusters; ++j) {
    CMOE_CHECK(capacity[j] >= 0 && capacity[j] <= n,
               "assign_balanced: cluster {} has capacity {}, expected 0 to {} (the number of items)", j, capacity[j], n);
    room += capacity[j];
  }
  CMOE_CHECK(room == n, "assign_balanced: the capacities of {} clusters sum to {}, expected {} (the number of items)", clusters,
             room, n);
  const int64_t limit = (int64_t{1} << 62) / std::max({n, 4 * clusters, int64_t{4}});
  for (int64_t i = 0; i < n * clusters; ++i) {
    CMOE_CHECK(cost[i] < limit && cost[i] > -limit,
               "assign_balanced: cost[{}, {}] is {}, expected a magnitude below {} so that {} of them can be added",
               i / clusters, i % clusters, cost[i], limit, n);
  }
}

}  // namespace

BalancedAssignment assign_balanced(std::span<const int64_t> cost, int64_t n, int64_t clusters,
                                   std::span<const int64_t> capacity) {
  check_arguments(cost, n, clusters, capacity);
  ClusterFlow flow(cost, n, clusters, capacity, sample_prices(cost, n, clusters, capacity));
  flow.solve();

  BalancedAssignment result;
  result.label = std::move(flow.label());
  result.cluster_price = std::move(flow.price());
  result.item_price.resize(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    const int64_t chosen = cost[i * clusters + result.label[i]];
    result.item_price[i] = chosen - result.cluster_price[result.label[i]];
    result.total_cost += chosen;
  }
  take_smallest_labels(cost, clusters, result.item_price, result.cluster_price, result.label);
  return result;
}

}  // namespace cmoe

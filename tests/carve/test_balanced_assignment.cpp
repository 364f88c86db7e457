#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <numeric>
#include <random>

#include "base/error.h"
#include "carve/balanced_assignment.h"

namespace cmoe {
namespace {

using Costs = std::vector<int64_t>;

// The oracle: the classical O(n^3) Hungarian algorithm on the n x n matrix in which column j stands capacity[j] times.
int64_t dense_optimum(const Costs& cost, int64_t n, int64_t clusters, const std::vector<int64_t>& capacity) {
  std::vector<int64_t> cluster_of;
  for (int64_t j = 0; j < clusters; ++j) cluster_of.insert(cluster_of.end(), static_cast<size_t>(capacity[j]), j);
  constexpr int64_t kBig = std::numeric_limits<int64_t>::max() / 4;
  std::vector<int64_t> u(n + 1, 0), v(n + 1, 0), row_of(n + 1, 0), way(n + 1, 0);
  for (int64_t i = 1; i <= n; ++i) {
    std::vector<int64_t> least(n + 1, kBig);
    std::vector<bool> used(n + 1, false);
    int64_t column = 0;
    row_of[0] = i;
    do {
      used[column] = true;
      const int64_t row = row_of[column];
      int64_t delta = kBig, next = 0;
      for (int64_t j = 1; j <= n; ++j) {
        if (used[j]) continue;
        const int64_t reduced = cost[(row - 1) * clusters + cluster_of[j - 1]] - u[row] - v[j];
        if (reduced < least[j]) {
          least[j] = reduced;
          way[j] = column;
        }
        if (least[j] < delta) {
          delta = least[j];
          next = j;
        }
      }
      for (int64_t j = 0; j <= n; ++j) {
        if (used[j]) {
          u[row_of[j]] += delta;
          v[j] -= delta;
        } else {
          least[j] -= delta;
        }
      }
      column = next;
    } while (row_of[column] != 0);
    for (; column != 0; column = way[column]) row_of[column] = row_of[way[column]];
  }
  int64_t total = 0;
  for (int64_t j = 1; j <= n; ++j) total += cost[(row_of[j] - 1) * clusters + cluster_of[j - 1]];
  return total;
}

// Feasible, and optimal by weak duality: sum u + sum capacity v is a lower bound that the assignment attains.
void expect_certified(const BalancedAssignment& result, const Costs& cost, int64_t n, int64_t clusters,
                      const std::vector<int64_t>& capacity) {
  ASSERT_EQ(static_cast<int64_t>(result.label.size()), n);
  std::vector<int64_t> count(clusters, 0);
  int64_t total = 0, bound = 0;
  for (int64_t i = 0; i < n; ++i) {
    ASSERT_GE(result.label[i], 0);
    ASSERT_LT(result.label[i], clusters);
    ++count[result.label[i]];
    total += cost[i * clusters + result.label[i]];
    bound += result.item_price[i];
    for (int64_t j = 0; j < clusters; ++j) {
      ASSERT_GE(cost[i * clusters + j], result.item_price[i] + result.cluster_price[j]) << "item " << i << " cluster " << j;
    }
  }
  for (int64_t j = 0; j < clusters; ++j) bound += capacity[j] * result.cluster_price[j];
  EXPECT_EQ(count, capacity);
  EXPECT_EQ(total, result.total_cost);
  EXPECT_EQ(bound, result.total_cost);
}

std::vector<int64_t> random_capacity(int64_t n, int64_t clusters, std::mt19937_64& random) {
  std::vector<int64_t> capacity(clusters, 0);
  for (int64_t i = 0; i < n; ++i) ++capacity[random() % clusters];
  return capacity;
}

Costs random_costs(int64_t n, int64_t clusters, int64_t low, int64_t high, std::mt19937_64& random) {
  Costs cost(n * clusters);
  for (int64_t& c : cost) c = std::uniform_int_distribution<int64_t>(low, high)(random);
  return cost;
}

// Costs like those of marker distances: few overlaps, so most rows are a term of the item plus a term of the cluster.
Costs marker_like_costs(int64_t n, int64_t clusters, double overlap_rate, std::mt19937_64& random) {
  Costs cost(n * clusters);
  std::vector<int64_t> seed_count(clusters);
  for (int64_t& count : seed_count) count = 100 + random() % 1000;
  std::geometric_distribution<int64_t> marks(0.05), overlap(1.0 / (1.0 + overlap_rate));
  for (int64_t i = 0; i < n; ++i) {
    const int64_t own = marks(random);
    for (int64_t j = 0; j < clusters; ++j) cost[i * clusters + j] = own + seed_count[j] - 2 * std::min(own, overlap(random));
  }
  return cost;
}

TEST(BalancedAssignment, CostsWhatTheDenseSolverFindsOnHundredsOfSmallCases) {
  std::mt19937_64 random(1);
  for (int trial = 0; trial < 600; ++trial) {
    const int64_t n = random() % 41, clusters = 1 + random() % 7;
    const std::vector<int64_t> capacity = random_capacity(n, clusters, random);
    const int64_t high = std::vector<int64_t>{0, 1, 3, 50, 1'000'000}[trial % 5];
    Costs cost = random_costs(n, clusters, -high, high, random);
    if (trial % 3 == 1) {  // equal columns
      for (int64_t i = 0; i < n; ++i) cost[i * clusters + clusters - 1] = cost[i * clusters];
    }
    if (trial % 4 == 2) {  // equal rows
      for (int64_t i = 1; i < n; i += 2) std::copy_n(&cost[(i - 1) * clusters], clusters, &cost[i * clusters]);
    }
    const BalancedAssignment result = assign_balanced(cost, n, clusters, capacity);
    expect_certified(result, cost, n, clusters, capacity);
    ASSERT_EQ(result.total_cost, dense_optimum(cost, n, clusters, capacity))
        << "trial " << trial << ", n " << n << ", clusters " << clusters;
  }
}

TEST(BalancedAssignment, SamplingForFirstPricesKeepsTheOptimum) {
  std::mt19937_64 random(2);
  for (int trial = 0; trial < 12; ++trial) {
    const int64_t n = 150 + random() % 100, clusters = 2 + random() % 4;
    const std::vector<int64_t> capacity = random_capacity(n, clusters, random);
    const Costs cost = trial % 2 ? random_costs(n, clusters, 0, 4, random) : marker_like_costs(n, clusters, 0.3, random);
    const BalancedAssignment result = assign_balanced(cost, n, clusters, capacity);
    expect_certified(result, cost, n, clusters, capacity);
    ASSERT_EQ(result.total_cost, dense_optimum(cost, n, clusters, capacity)) << "trial " << trial;
  }
}

TEST(BalancedAssignment, OfEqualOptimaTheLexicographicallySmallestLabelsWin) {
  std::mt19937_64 random(3);
  for (int trial = 0; trial < 300; ++trial) {
    const int64_t n = 1 + random() % 8, clusters = 2 + random() % 2;
    const std::vector<int64_t> capacity = random_capacity(n, clusters, random);
    const Costs cost = random_costs(n, clusters, 0, trial % 3, random);
    std::vector<int32_t> candidate, best;
    for (int64_t j = 0; j < clusters; ++j)
      candidate.insert(candidate.end(), static_cast<size_t>(capacity[j]), static_cast<int32_t>(j));
    int64_t best_cost = std::numeric_limits<int64_t>::max();
    do {  // permutations come in lexicographic order, so the first optimum seen is the smallest
      int64_t total = 0;
      for (int64_t i = 0; i < n; ++i) total += cost[i * clusters + candidate[i]];
      if (total < best_cost) {
        best_cost = total;
        best = candidate;
      }
    } while (std::next_permutation(candidate.begin(), candidate.end()));
    const BalancedAssignment result = assign_balanced(cost, n, clusters, capacity);
    ASSERT_EQ(result.label, best) << "trial " << trial;
  }
}

TEST(BalancedAssignment, TermsOfARowOrAColumnChangeNoLabel) {
  std::mt19937_64 random(4);
  const int64_t n = 700, clusters = 70;  // more clusters than bits in a word
  const std::vector<int64_t> capacity(clusters, 10);
  Costs cost = random_costs(n, clusters, 0, 2, random);
  const std::vector<int32_t> label = assign_balanced(cost, n, clusters, capacity).label;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < clusters; ++j) cost[i * clusters + j] += 13 * (i % 7) - 1000 * (j % 5);
  }
  const BalancedAssignment shifted = assign_balanced(cost, n, clusters, capacity);
  expect_certified(shifted, cost, n, clusters, capacity);
  EXPECT_EQ(shifted.label, label);
}

TEST(BalancedAssignment, AllCostsEqualFillsTheClustersInOrder) {
  const BalancedAssignment result = assign_balanced(Costs(6 * 3, 7), 6, 3, std::vector<int64_t>{1, 3, 2});
  EXPECT_THAT(result.label, testing::ElementsAre(0, 1, 1, 1, 2, 2));
  EXPECT_EQ(result.total_cost, 42);
}

TEST(BalancedAssignment, EdgesOfTheRange) {
  const BalancedAssignment none = assign_balanced({}, 0, 2, std::vector<int64_t>{0, 0});
  EXPECT_TRUE(none.label.empty());
  EXPECT_EQ(none.total_cost, 0);
  const BalancedAssignment one = assign_balanced(Costs{-3, 5}, 2, 1, std::vector<int64_t>{2});
  EXPECT_THAT(one.label, testing::ElementsAre(0, 0));
  EXPECT_EQ(one.total_cost, 2);
  // Everyone prefers the cluster without room.
  const Costs cost{0, 9, 5, 0, 7, 7, 0, 1, 2};
  const BalancedAssignment closed = assign_balanced(cost, 3, 3, std::vector<int64_t>{0, 2, 1});
  expect_certified(closed, cost, 3, 3, {0, 2, 1});
  EXPECT_EQ(closed.total_cost, dense_optimum(cost, 3, 3, {0, 2, 1}));
}

TEST(BalancedAssignment, LargeCasesAreCertified) {
  std::mt19937_64 random(5);
  const int64_t n = 9632, clusters = 14;
  const std::vector<int64_t> capacity(clusters, n / clusters);
  const int64_t big = int64_t{1} << 40;
  for (const Costs& cost : {marker_like_costs(n, clusters, 0.02, random), marker_like_costs(n, clusters, 2.0, random),
                            random_costs(n, clusters, -big, big, random), Costs(n * clusters, 0)}) {
    expect_certified(assign_balanced(cost, n, clusters, capacity), cost, n, clusters, capacity);
  }
}

// tests/carve/make_assignment_golden.py: costs by a formula both sides know, optimum by scipy.
TEST(BalancedAssignment, AgreesWithScipy) {
  std::ifstream file(CMOE_SOURCE_DIR "/tests/carve/assignment_golden.txt");
  ASSERT_TRUE(file.is_open());
  int64_t n, clusters, modulus, optimum;
  int cases = 0;
  while (file >> n >> clusters >> modulus >> optimum) {
    Costs cost(n * clusters);
    uint64_t state = static_cast<uint64_t>(n * 1000 + clusters);
    for (int64_t& c : cost) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      c = static_cast<int64_t>((state >> 33) % static_cast<uint64_t>(modulus));
    }
    EXPECT_EQ(assign_balanced(cost, n, clusters, std::vector<int64_t>(clusters, n / clusters)).total_cost, optimum)
        << n << " x " << clusters << " modulo " << modulus;
    ++cases;
  }
  EXPECT_GE(cases, 8);
}

std::string message_of(const Costs& cost, int64_t n, int64_t clusters, const std::vector<int64_t>& capacity) {
  try {
    assign_balanced(cost, n, clusters, capacity);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(BalancedAssignment, RefusesWithNumbers) {
  using testing::HasSubstr;
  EXPECT_THAT(message_of({1, 2, 3, 4}, 2, 2, {1, 2}), HasSubstr("the capacities of 2 clusters sum to 3, expected 2"));
  EXPECT_THAT(message_of({1, 2, 3, 4}, 2, 2, {3, -1}), HasSubstr("cluster 0 has capacity 3, expected 0 to 2"));
  EXPECT_THAT(message_of({1, 2, 3}, 2, 2, {1, 1}),
              HasSubstr("the cost matrix has 3 elements, expected 2 items x 2 clusters = 4"));
  EXPECT_THAT(message_of({1, 2, 3, 4}, 2, 2, {2}), HasSubstr("1 capacities, expected one for each of 2 clusters"));
  EXPECT_THAT(message_of({}, 0, 0, {}), HasSubstr("0 clusters; expected at least 1"));
  EXPECT_THAT(message_of({}, -1, 1, {0}), HasSubstr("-1 items; expected 0"));
  EXPECT_THAT(message_of({1, 2, int64_t{1} << 61, 4}, 2, 2, {1, 1}),
              HasSubstr("cost[1, 0] is 2305843009213693952, expected a magnitude below"));
}

}  // namespace
}  // namespace cmoe

// Time of the exact balanced assignment on one core, on costs of the kinds that carving makes and on harder ones.
// Every result is certified by its dual prices before its time is printed.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "carve/balanced_assignment.h"

namespace {

enum Kind : int64_t { marker_sparse, marker_dense, random_few_values, random_wide, cosine, skewed, equal, equal_columns };
const char* const kKindNames[] = {"marker distances, few overlaps",
                                  "marker distances, many overlaps",
                                  "random 0..9",
                                  "random 0..2^40",
                                  "cosines * 2^30",
                                  "one cluster cheapest for all",
                                  "all equal",
                                  "equal pairs of columns"};

std::vector<int64_t> make_costs(Kind kind, int64_t n, int64_t clusters) {
  std::mt19937_64 random(7);
  std::normal_distribution<double> normal;
  std::vector<int64_t> cost(static_cast<size_t>(n * clusters), 0);
  std::vector<int64_t> seed_count(static_cast<size_t>(clusters));
  for (int64_t& count : seed_count) count = 100 + static_cast<int64_t>(random() % 1000);
  std::geometric_distribution<int64_t> marks(0.05), overlap(kind == marker_sparse ? 0.95 : 0.3);
  for (int64_t i = 0; i < n; ++i) {
    int64_t* row = cost.data() + i * clusters;
    const int64_t own = marks(random);
    const double common = normal(random);
    for (int64_t j = 0; j < clusters; ++j) {
      switch (kind) {
        case marker_sparse:
        case marker_dense:
          row[j] = own + seed_count[j] - 2 * std::min(own, overlap(random));
          break;
        case random_few_values:
          row[j] = static_cast<int64_t>(random() % 10);
          break;
        case random_wide:
          row[j] = static_cast<int64_t>(random() >> 24);
          break;
        case cosine:
          row[j] =
              -std::llround(std::ldexp(0.3 + 0.1 * common + 0.05 * normal(random) + 0.02 * static_cast<double>(j % 5), 30));
          break;
        case skewed:
          row[j] = static_cast<int64_t>(random() % 1000) + 1000 * j;
          break;
        case equal:
          break;
        case equal_columns:
          row[j] = j % 2 ? row[j - 1] : static_cast<int64_t>(random() % 100);
          break;
      }
    }
  }
  return cost;
}

bool certified(const cmoe::BalancedAssignment& result, const std::vector<int64_t>& cost, int64_t n,
               const std::vector<int64_t>& capacity) {
  const auto clusters = static_cast<int64_t>(capacity.size());
  std::vector<int64_t> count(capacity.size(), 0);
  for (int64_t i = 0; i < n; ++i) {
    ++count[result.label[i]];
    for (int64_t j = 0; j < clusters; ++j) {
      const int64_t slack = cost[i * clusters + j] - result.item_price[i] - result.cluster_price[j];
      if (slack < 0 || (slack != 0 && result.label[i] == j)) return false;
    }
  }
  return count == capacity;
}

void assign(benchmark::State& state) {
  const int64_t n = state.range(0), clusters = state.range(1);
  const auto kind = static_cast<Kind>(state.range(2));
  const std::vector<int64_t> cost = make_costs(kind, n, clusters), capacity(static_cast<size_t>(clusters), n / clusters);
  state.SetLabel(kKindNames[kind]);
  if (!certified(cmoe::assign_balanced(cost, n, clusters, capacity), cost, n, capacity)) {
    state.SkipWithError("the dual prices do not certify the result");
    return;
  }
  for (auto _ : state) benchmark::DoNotOptimize(cmoe::assign_balanced(cost, n, clusters, capacity));
}

void sizes(benchmark::internal::Benchmark* benchmark) {
  for (auto [n, clusters] : {std::pair<int64_t, int64_t>{960, 5}, {9632, 14}, {25088, 14}, {27328, 61}}) {
    for (int64_t kind = marker_sparse; kind <= equal_columns; ++kind) benchmark->Args({n - n % clusters, clusters, kind});
  }
}
BENCHMARK(assign)->Apply(sizes)->ArgNames({"n", "R", "kind"})->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();

// Time of marking one layer: 16,384 tokens, the ten largest |h| of each. The marks are checked against a sort before timing.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "base/parallel.h"
#include "carve/markers.h"

namespace {

void mark(benchmark::State& state) {
  const int64_t tokens = 16384, neurons = state.range(0), k = 10;
  cmoe::set_num_threads(static_cast<int>(state.range(1)));
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> h(static_cast<size_t>(tokens * neurons));
  for (float& value : h) value = std::pow(normal(random), 3.0f);  // heavy tails, as activations have
  std::vector<int32_t> marks(static_cast<size_t>(tokens * k)), order(static_cast<size_t>(neurons));
  cmoe::mark_top_k(h.data(), tokens, neurons, k, marks.data());
  for (int64_t t = 0; t < tokens; t += 997) {
    const float* row = h.data() + t * neurons;
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return std::abs(row[a]) > std::abs(row[b]); });
    std::sort(order.begin(), order.begin() + k);
    if (!std::equal(order.begin(), order.begin() + k, marks.begin() + t * k)) state.SkipWithError("wrong marks");
  }
  for (auto _ : state) {
    cmoe::mark_top_k(h.data(), tokens, neurons, k, marks.data());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * tokens * neurons * 4);
  cmoe::set_num_threads(1);
}
BENCHMARK(mark)
    ->ArgNames({"neurons", "threads"})
    ->Args({1536, 1})
    ->Args({1536, 2})
    ->Args({8192, 1})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

}  // namespace

BENCHMARK_MAIN();

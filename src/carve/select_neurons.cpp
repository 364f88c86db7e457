#include "carve/select_neurons.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "carve/columns.h"

namespace cmoe {

std::vector<double> score_neurons(Score score, const NeuronStatistics& statistics, const Tensor& down, uint64_t seed,
                                  int64_t layer) {
  const auto f = static_cast<size_t>(down.dim(1));
  std::vector<double> result(f);
  if (score == Score::activation_rate) {
    // mu_i = (tokens that mark i) / tokens
    for (size_t i = 0; i < f; ++i)
      result[i] = static_cast<double>(statistics.marked[i]) / static_cast<double>(statistics.tokens);
  } else if (score == Score::mass || score == Score::variance) {
    const std::vector<double> norms = column_squared_norms(down);
    for (size_t i = 0; i < f; ++i) {
      const double mean_square = score == Score::variance ? statistics.mean[i] * statistics.mean[i] : 0.0;
      result[i] = (statistics.second_moment[i] - mean_square) * norms[i];
    }
  } else if (score == Score::index) {
    for (size_t i = 0; i < f; ++i) result[i] = -static_cast<double>(i);
  } else {
    std::mt19937_64 random(seed * 1000003 + static_cast<uint64_t>(layer));
    for (double& value : result) value = static_cast<double>(random() >> 11);
  }
  return result;
}

std::vector<int32_t> highest_neurons(const std::vector<double>& score, int64_t count) {
  std::vector<int32_t> order(score.size());
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](int32_t a, int32_t b) {
    const double left = score[static_cast<size_t>(a)], right = score[static_cast<size_t>(b)];
    return left != right ? left > right : a < b;
  });
  order.resize(static_cast<size_t>(count));
  std::sort(order.begin(), order.end());
  return order;
}

std::vector<int32_t> remaining_neurons(int64_t neurons, const std::vector<int32_t>& taken) {
  std::vector<int32_t> rest;
  auto next = taken.begin();
  for (int32_t i = 0; i < neurons; ++i) {
    if (next != taken.end() && *next == i) {
      ++next;
    } else {
      rest.push_back(i);
    }
  }
  return rest;
}

}  // namespace cmoe

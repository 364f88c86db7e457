#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "base/error.h"

namespace cmoe {

int32_t Sampler::next(std::span<const float> logits) {
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i])) fail_internal("sampler: the logit of token {} is NaN", i);
  }
  const auto best = std::max_element(logits.begin(), logits.end());  // the first of equals
  if (options_.temperature <= 0) return static_cast<int32_t>(best - logits.begin());

  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto more_likely = [&](int32_t a, int32_t b) {
    const float left = logits[static_cast<size_t>(a)], right = logits[static_cast<size_t>(b)];
    return left != right ? left > right : a < b;
  };
  if (options_.top_k > 0 && options_.top_k < static_cast<int64_t>(order.size())) {
    std::partial_sort(order.begin(), order.begin() + options_.top_k, order.end(), more_likely);
    order.resize(static_cast<size_t>(options_.top_k));
  } else if (options_.top_p < 1) {
    std::sort(order.begin(), order.end(), more_likely);
  }
  std::vector<double> weight;
  for (int32_t id : order)
    weight.push_back(std::exp((static_cast<double>(logits[static_cast<size_t>(id)]) - *best) / options_.temperature));
  if (options_.top_p < 1) {
    const double enough = options_.top_p * std::accumulate(weight.begin(), weight.end(), 0.0);
    double sum = 0;
    size_t kept = 0;
    while (kept < weight.size() && sum < enough) sum += weight[kept++];
    weight.resize(std::max<size_t>(kept, 1));
  }
  // A number in [0, 1) from the top 53 bits: the same on every standard library.
  double target = static_cast<double>(random_() >> 11) * 0x1p-53 * std::accumulate(weight.begin(), weight.end(), 0.0);
  for (size_t i = 0; i < weight.size(); ++i) {
    target -= weight[i];
    if (target < 0) return order[i];
  }
  return order[weight.size() - 1];
}

}  // namespace cmoe

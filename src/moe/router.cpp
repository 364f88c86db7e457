#include "moe/router.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"

namespace cmoe {
namespace {

// weight_j = 1 + softmax(s)_j u_j for the chosen experts of one token.
void append_weights(const Router& router, const float* scores, std::span<const int32_t> chosen, std::vector<float>& weight) {
  if (router.scale.size() == 0) {
    weight.insert(weight.end(), chosen.size(), 1.0f);
    return;
  }
  const int64_t experts = router.num_experts();
  const float top = *std::max_element(scores, scores + experts);
  float sum = 0;
  for (int64_t j = 0; j < experts; ++j) sum += std::exp(scores[j] - top);
  for (int32_t j : chosen) weight.push_back(1.0f + std::exp(scores[j] - top) / sum * router.scale.data<float>()[j]);
}

}  // namespace

Tensor router_scores(const Backend& backend, const Router& router, const Tensor& x) {
  Tensor scores(DType::f32, {x.dim(0), router.num_experts()});
  if (router.kind == RouterKind::linear) {
    backend.linear(x, router.weight, scores);
    if (router.bias.size() > 0) backend.add_bias(router.bias, scores);
    return scores;
  }
  Tensor up(DType::f32, scores.shape());
  backend.linear(x, router.gate_proj, scores);
  backend.linear(x, router.up_proj, up);
  backend.swiglu(scores, up, scores);
  if (router.kind == RouterKind::authors) {
    for (float& s : scores.span<float>()) s = std::abs(s);
  }
  return scores;
}

Routing select_experts(const Router& router, const Tensor& scores) {
  const int64_t experts = router.num_experts();
  Routing routing;
  routing.expert_offset.reserve(static_cast<size_t>(scores.dim(0)) + 1);
  std::vector<float> keyed(static_cast<size_t>(experts));
  std::vector<int32_t> order(static_cast<size_t>(experts));
  std::vector<int32_t> chosen;
  for (int64_t t = 0; t < scores.dim(0); ++t) {
    const float* s = scores.row<float>(t);
    for (int64_t j = 0; j < experts; ++j) {
      if (std::isnan(s[j])) fail_internal("router: score of expert {} is NaN at token {}", j, t);
      keyed[static_cast<size_t>(j)] = s[j] + (router.selection_bias.size() > 0 ? router.selection_bias.data<float>()[j] : 0.0f);
    }
    chosen.clear();
    if (router.selector == Selector::threshold) {
      for (int32_t j = 0; j < experts; ++j) {
        if (keyed[static_cast<size_t>(j)] >= router.threshold) chosen.push_back(j);
      }
    } else {
      std::iota(order.begin(), order.end(), 0);
      const auto k = static_cast<ptrdiff_t>(std::min(router.num_experts_per_tok, experts));
      std::partial_sort(order.begin(), order.begin() + k, order.end(), [&](int32_t a, int32_t b) {
        const float left = keyed[static_cast<size_t>(a)], right = keyed[static_cast<size_t>(b)];
        return left != right ? left > right : a < b;
      });
      chosen.assign(order.begin(), order.begin() + k);
      std::sort(chosen.begin(), chosen.end());
    }
    append_weights(router, s, chosen, routing.weight);
    routing.expert_idx.insert(routing.expert_idx.end(), chosen.begin(), chosen.end());
    routing.expert_offset.push_back(static_cast<int32_t>(routing.expert_idx.size()));
  }
  return routing;
}

}  // namespace cmoe

#include "eval/expert_counter.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

namespace cmoe {

ExpertCounter::ExpertCounter(const ModelConfig& config) : layers_(config.num_hidden_layers) {
  if (config.moe) {
    routed_ = config.moe->num_routed_experts();
    expert_fraction_ = static_cast<double>(config.moe->moe_intermediate_size) / static_cast<double>(config.intermediate_size);
    shared_fraction_ = expert_fraction_ * static_cast<double>(config.moe->num_shared_experts);
  }
  tokens_.resize(static_cast<size_t>(layers_));
  per_expert_.resize(static_cast<size_t>(layers_ * routed_));
  by_active_.resize(static_cast<size_t>(layers_ * (routed_ + 1)));
}

void ExpertCounter::on_routing(int64_t layer, const Routing& routing) {
  tokens_[static_cast<size_t>(layer)] += routing.tokens();
  for (int32_t e : routing.expert_idx) ++per_expert_[static_cast<size_t>(layer * routed_ + e)];
  for (int64_t t = 0; t < routing.tokens(); ++t) {
    ++by_active_[static_cast<size_t>(layer * (routed_ + 1)) + routing.experts(t).size()];
  }
}

void ExpertCounter::reduce(Communicator& comm) {
  comm.all_reduce_sum(tokens_);
  comm.all_reduce_sum(per_expert_);
  comm.all_reduce_sum(by_active_);
}

double ExpertCounter::active_fraction() const {
  const int64_t tokens = std::accumulate(tokens_.begin(), tokens_.end(), int64_t{0});
  if (routed_ == 0 || tokens == 0) return shared_fraction_;
  const int64_t pairs = std::accumulate(per_expert_.begin(), per_expert_.end(), int64_t{0});
  return shared_fraction_ + expert_fraction_ * static_cast<double>(pairs) / static_cast<double>(tokens);
}

nlohmann::json ExpertCounter::to_json() const {
  nlohmann::json layers = nlohmann::json::array();
  for (int64_t l = 0; l < layers_ && routed_ > 0; ++l) {
    const std::span counts(per_expert_.data() + l * routed_, static_cast<size_t>(routed_));
    const std::span active(by_active_.data() + l * (routed_ + 1), static_cast<size_t>(routed_ + 1));
    const auto tokens = static_cast<double>(std::max<int64_t>(tokens_[static_cast<size_t>(l)], 1));
    const double mean =
        static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0})) / static_cast<double>(routed_);
    layers.push_back(
        {{"layer", l},
         {"tokens_per_expert", counts},
         {"max_over_mean", mean > 0 ? static_cast<double>(*std::max_element(counts.begin(), counts.end())) / mean : 0.0},
         {"mean_active_experts", mean * static_cast<double>(routed_) / tokens},
         {"tokens_by_active_experts", active}});
  }
  return {{"active_fraction", active_fraction()}, {"layers", std::move(layers)}};
}

}  // namespace cmoe

#pragma once

#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "comm/communicator.h"
#include "model/config.h"
#include "moe/moe_layer.h"

namespace cmoe {

/// Counts what a carved model's routers choose while it runs: tokens per expert and layer, and how many experts a token takes.
class ExpertCounter : public MoeObserver {
 public:
  explicit ExpertCounter(const ModelConfig& config);

  void on_routing(int64_t layer, const Routing& routing) override;

  /// Adds the counts of all ranks. Collective; call once, at the end.
  void reduce(Communicator& comm);

  /// Mean share of the dense FFN's neurons that a token computed; 1 for a dense model.
  double active_fraction() const;
  /// {active_fraction, layers: [{tokens_per_expert, max_over_mean, mean_active_experts, tokens_by_active_experts}]}.
  nlohmann::json to_json() const;

 private:
  int64_t routed_ = 0, layers_;
  double shared_fraction_ = 1, expert_fraction_ = 0;  // of the dense FFN's neurons
  std::vector<int64_t> tokens_;                       // [layers]
  std::vector<int64_t> per_expert_;                   // [layers, routed]
  std::vector<int64_t> by_active_;                    // [layers, routed + 1]
};

}  // namespace cmoe

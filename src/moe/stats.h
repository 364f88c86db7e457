#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "moe/dispatcher.h"
#include "moe/placement.h"
#include "moe/routing.h"

namespace cmoe {

/// What one MoE layer did over any number of calls: on one rank until merged, on all ranks of the group after.
struct LayerStats {
  std::vector<int64_t> tokens_per_expert;  ///< [num_routed_experts] (token, expert) pairs by home rank
  std::vector<int64_t> tokens_per_rank;    ///< [ranks] pairs by serving rank
  int64_t tokens = 0;
  int64_t calls = 0;             ///< of one rank
  int64_t all_gather_calls = 0;  ///< those of them that all_gather carried
  WireBytes sent;
  // Seconds; merged: the mean over ranks, and beside it the largest of any rank.
  double route_seconds = 0, dispatch_seconds = 0, experts_seconds = 0, combine_seconds = 0, wait_seconds = 0;
  double slowest_rank_seconds = 0;  ///< largest sum of the five over ranks

  /// Counts one call's tokens at home on `home_rank`.
  void add(const Routing& routing, const ExpertPlacement& placement, int home_rank);
  /// Adds bytes and times of one call; call after combine.
  void add(const ExchangeReport& report);

  double seconds() const { return route_seconds + dispatch_seconds + experts_seconds + combine_seconds + wait_seconds; }
  /// Largest over mean of tokens_per_expert or tokens_per_rank; 1 when empty.
  double expert_max_over_mean() const;
  double rank_max_over_mean() const;
};

/// LayerStats of every MoE layer of a model.
struct MoeStats {
  std::vector<LayerStats> layers;

  /// The same statistics over all ranks of `group`, equal on all of them. Collective. Counts are sums, hence exact.
  MoeStats merged(Communicator& group) const;
  /// {"layers": [{"layer", "tokens", "tokens_per_expert", ..., "bytes": {...}, "seconds": {...}}], "total": {...}}
  nlohmann::json to_json() const;
  /// One line per layer and one for all: tokens, experts per token, max/mean, MB sent, ms per stage.
  std::string table() const;
};

}  // namespace cmoe

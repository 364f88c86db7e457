#pragma once

#include <memory>
#include <vector>

#include "comm/communicator.h"
#include "model/config.h"
#include "moe/expert_parallel.h"

namespace cmoe {

/// A carved model's experts in their order over groups of `size` ranks, a divisor of the world's. Collective.
struct SpreadExperts {
  std::unique_ptr<Communicator> group;
  std::shared_ptr<const ExpertParallel> parallel;

  SpreadExperts(const ModelConfig& config, Communicator& world, int size) : group(world.split(world.rank() / size)) {
    const auto routed = static_cast<int32_t>(config.moe->num_routed_experts());
    const std::vector<ExpertPlacement> placement(static_cast<size_t>(config.num_hidden_layers),
                                                 ExpertPlacement::contiguous(routed, size));
    parallel = std::make_shared<ExpertParallel>(*group, placement, DispatcherOptions{});
  }
};

}  // namespace cmoe

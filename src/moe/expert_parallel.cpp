#include "moe/expert_parallel.h"

#include "base/error.h"
#include "comm/solo.h"

namespace cmoe {

ExpertParallel::ExpertParallel(Communicator& group, std::vector<ExpertPlacement> placement, const DispatcherOptions& options)
    : group_(&group), placement_(std::move(placement)), dispatcher_(make_dispatcher(group, options)) {
  for (const ExpertPlacement& layer : placement_) {
    CMOE_CHECK(layer.ranks() == group.size() && layer.num_experts() == placement_[0].num_experts(),
               "expert parallel: a layer places {} experts on {} ranks; expected {} experts on the {} ranks of the group",
               layer.num_experts(), layer.ranks(), placement_[0].num_experts(), group.size());
  }
}

ExpertParallel::~ExpertParallel() = default;

std::shared_ptr<const ExpertParallel> ExpertParallel::alone(int64_t layers, int64_t num_experts) {
  std::unique_ptr<Communicator> solo = make_solo_communicator();
  const std::vector<ExpertPlacement> placement(static_cast<size_t>(layers),
                                               ExpertPlacement::contiguous(static_cast<int32_t>(num_experts), 1));
  auto parallel = std::make_shared<ExpertParallel>(*solo, placement, DispatcherOptions{});
  parallel->own_ = std::move(solo);
  return parallel;
}

}  // namespace cmoe

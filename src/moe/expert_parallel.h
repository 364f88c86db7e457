#pragma once

#include <memory>
#include <vector>

#include "comm/communicator.h"
#include "moe/dispatcher.h"
#include "moe/placement.h"

namespace cmoe {

/// The ranks that hold a model's routed experts between them: which rank holds which expert of which layer, and the dispatcher
/// that carries tokens there and back. One object serves all layers of one model; it is used by one thread.
class ExpertParallel {
 public:
  /// A group of one, without a message layer: this process holds every expert.
  static std::shared_ptr<const ExpertParallel> alone(int64_t layers, int64_t num_experts);

  /// @param group      the ranks that share the experts; must outlive this object
  /// @param placement  [layers] of the same number of experts, over the ranks of `group`; the same on all of them
  ExpertParallel(Communicator& group, std::vector<ExpertPlacement> placement, const DispatcherOptions& options);
  ~ExpertParallel();

  Communicator& group() const { return *group_; }
  int rank() const { return group_->rank(); }
  int ranks() const { return group_->size(); }
  int64_t layers() const { return static_cast<int64_t>(placement_.size()); }
  const ExpertPlacement& placement(int64_t layer) const { return placement_[static_cast<size_t>(layer)]; }
  Dispatcher& dispatcher() const { return *dispatcher_; }

  /// Pieces of a rank's tokens that go through a layer one behind the other; the same on all ranks.
  int64_t chunks() const { return chunks_; }
  void set_chunks(int64_t chunks) { chunks_ = chunks; }

  /// Whether this rank holds a copy of the expert.
  bool holds(int64_t layer, GlobalExpert expert) const { return placement(layer).find_local(expert, rank()).has_value(); }

 private:
  std::unique_ptr<Communicator> own_;  // of a group of one
  Communicator* group_;
  std::vector<ExpertPlacement> placement_;
  std::unique_ptr<Dispatcher> dispatcher_;
  int64_t chunks_ = 1;
};

}  // namespace cmoe

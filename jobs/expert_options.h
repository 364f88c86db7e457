#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/options.h"
#include "comm/communicator.h"
#include "model/checkpoint.h"
#include "moe/expert_parallel.h"
#include "moe/recorder.h"
#include "tensor/dtype.h"

namespace cmoe::jobs {

/// Options of the jobs that run carved models: how routed experts spread over ranks, and what is told about it.
struct ExpertOptions {
  int64_t expert_parallel = 0, redundant_experts = 0, dispatch_chunks = 1;
  std::string dispatcher = "auto", placement = "contiguous", wire_dtype = "f32", moe_stats, trace, plan_link;
  bool dry_run = false;

  void declare(Options& options);
  /// --expert-parallel, --dispatcher and --placement alone.
  void declare_spread(Options& options);
  /// Ranks of a group: as asked, or the ranks of a node where they divide the world. Collective.
  /// @throws Error when the groups would not divide the world.
  int group_size(Communicator& world) const;
  std::vector<ExpertPlacement> place(const Checkpoint& checkpoint, int ranks) const;
  DispatcherOptions dispatcher_options() const;
};

/// The groups that share one model's experts, and the recorder of what they do.
class ExpertGroups {
 public:
  /// Collective. A dense model has no groups and no recorder.
  ExpertGroups(const ExpertOptions& options, const Checkpoint& checkpoint, Communicator& world);

  /// Null for a dense model.
  std::shared_ptr<const ExpertParallel> parallel() const { return parallel_; }
  /// What to pass to a forward pass, beside `other` when it is not null; null when nobody looks.
  MoeObserver* observer(MoeObserver* other = nullptr);
  /// Statistics of all ranks: the table to stderr, and the JSON and trace that were asked for. Collective.
  /// @param model  for the JSON and the table
  void report(const std::string& model, Communicator& world) const;

 private:
  ExpertOptions options_;
  std::unique_ptr<Communicator> group_;
  std::shared_ptr<const ExpertParallel> parallel_;
  std::unique_ptr<MoeRecorder> recorder_;
  MoeObserverList observers_;
};

/// Prints what --dry-run tells of a model, from its headers alone: per rank the experts, the bytes read, weights and KV caches;
/// the bytes on the wire per token; with --plan-link, what a link makes of them.
/// @param kv_bytes    of one rank's KV caches
/// @param step_bytes  of one rank's activations in a step
void print_expert_plan(const ExpertOptions& options, const Checkpoint& checkpoint, DType dtype, int ranks, int64_t kv_bytes,
                       int64_t step_bytes);

}  // namespace cmoe::jobs

#include "jobs/expert_options.h"

#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/log.h"
#include "model/expert_plan.h"

namespace cmoe::jobs {

void ExpertOptions::declare_spread(Options& options) {
  options.add("expert-parallel", &expert_parallel,
              "ranks that share the routed experts of a carved model; the others read other text. 0: the ranks of a node",
              {.least = 0, .most = 1 << 20});
  options.add_choice("dispatcher", &dispatcher, {"auto", "all_to_all", "all_gather"}, "how tokens travel to their experts");
  options.add_choice("placement", &placement, {"contiguous", "balanced"},
                     "of experts on ranks: in order, or even by the loads of the calibration text");
}

void ExpertOptions::declare(Options& options) {
  declare_spread(options);
  options.add("redundant-experts", &redundant_experts, "copies of hot experts in each layer, with balanced placement",
              {.least = 0, .most = 1 << 20});
  options.add_choice("wire-dtype", &wire_dtype, {"f32", "bf16"}, "type of the rows that travel; f32 changes no result");
  options.add("dispatch-chunks", &dispatch_chunks,
              "pieces of a rank's tokens that travel one behind the other, so that one is computed while others are under way",
              {.least = 1, .most = 64});
  options.add("moe-stats", &moe_stats, "write tokens, bytes and times of every MoE layer to this JSON file, and print a table");
  options.add("trace", &trace, "write the times of every MoE layer's stages to this file, in Chrome's trace format");
  options.add("dry-run", &dry_run, "print memory and bytes on the wire of every rank, from the headers, and stop");
  options.add_choice("plan-link", &plan_link, {"", "nvlink", "400g"}, "with --dry-run: also times on GPUs joined by this link");
}

int ExpertOptions::group_size(Communicator& world) const {
  std::array<int64_t, 1> size{expert_parallel};
  if (size[0] == 0) size[0] = world.size() % world.node_size() == 0 ? world.node_size() : world.size();
  world.broadcast(std::span<int64_t>(size), 0);
  CMOE_CHECK(dry_run || world.size() % size[0] == 0,
             "expert_parallel: groups of {} ranks; expected a divisor of the world's {}", size[0], world.size());
  return static_cast<int>(size[0]);
}

std::vector<ExpertPlacement> ExpertOptions::place(const Checkpoint& checkpoint, int ranks) const {
  if (!checkpoint.config.moe) return {};
  return place_experts(checkpoint, placement == "balanced" ? PlacementKind::balanced : PlacementKind::contiguous, ranks,
                       static_cast<int>(redundant_experts));
}

DispatcherOptions ExpertOptions::dispatcher_options() const {
  return {.kind = dispatcher_kind(dispatcher), .wire = wire_dtype == "bf16" ? DType::bf16 : DType::f32};
}

ExpertGroups::ExpertGroups(const ExpertOptions& options, const Checkpoint& checkpoint, Communicator& world)
    : options_(options) {
  const int size = options.group_size(world);
  if (!checkpoint.config.moe) return;
  std::vector<ExpertPlacement> placement = options.place(checkpoint, size);
  group_ = world.split(world.rank() / size);
  const auto parallel = std::make_shared<ExpertParallel>(*group_, std::move(placement), options.dispatcher_options());
  parallel->set_chunks(options.dispatch_chunks);
  parallel_ = parallel;
  if (!options.moe_stats.empty() || !options.trace.empty())
    recorder_ = std::make_unique<MoeRecorder>(parallel_, world, /*keep_calls=*/!options.trace.empty());
}

MoeObserver* ExpertGroups::observer(MoeObserver* other) {
  if (!recorder_) return other;
  observers_ = {};
  observers_.add(recorder_.get());
  if (other) observers_.add(other);
  return &observers_;
}

void ExpertGroups::report(const std::string& model, Communicator& world) const {
  if (!recorder_) return;
  if (!options_.moe_stats.empty()) {
    const MoeStats stats = recorder_->stats().merged(world);
    nlohmann::json json = stats.to_json();
    json["model"] = model;
    json["ranks"] = world.size();
    json["expert_parallel"] = parallel_->ranks();
    if (world.rank() == 0) {
      write_file_atomically(options_.moe_stats, json.dump(1) + "\n");
      log_info("MoE layers of {}, {} ranks in groups of {}; times are means over ranks\n{}", model, world.size(),
               parallel_->ranks(), stats.table());
    }
  }
  if (!options_.trace.empty()) {
    const std::string trace = recorder_->chrome_trace(world);
    if (world.rank() == 0) write_file_atomically(options_.trace, trace);
  }
}

}  // namespace cmoe::jobs

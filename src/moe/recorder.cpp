#include "moe/recorder.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace cmoe {
namespace {

constexpr const char* kStageNames[kMoeStages] = {"route", "send", "shared expert", "receive", "experts", "combine"};

double seconds_of(const MoeCall& call, MoeStage stage) { return call.stages[static_cast<size_t>(stage)].seconds; }

}  // namespace

MoeRecorder::MoeRecorder(std::shared_ptr<const ExpertParallel> parallel, Communicator& world, bool keep_calls)
    : parallel_(std::move(parallel)), keep_calls_(keep_calls) {
  for (int64_t l = 0; l < parallel_->layers(); ++l) {
    LayerStats layer;
    layer.tokens_per_expert.resize(static_cast<size_t>(parallel_->placement(l).num_experts()), 0);
    layer.tokens_per_rank.resize(static_cast<size_t>(parallel_->ranks()), 0);
    stats_.layers.push_back(std::move(layer));
  }
  world.barrier();
  origin_ = std::chrono::steady_clock::now();
}

void MoeRecorder::on_routing(int64_t layer, const Routing& routing) {
  stats_.layers[static_cast<size_t>(layer)].add(routing, parallel_->placement(layer), parallel_->rank());
}

void MoeRecorder::on_call(int64_t layer, const MoeCall& call) {
  LayerStats& stats = stats_.layers[static_cast<size_t>(layer)];
  stats.add(call.report);
  stats.route_seconds += seconds_of(call, MoeStage::route);
  stats.experts_seconds += seconds_of(call, MoeStage::shared) + seconds_of(call, MoeStage::experts);
  if (keep_calls_) kept_.push_back({layer, call});
}

std::string MoeRecorder::chrome_trace(Communicator& world) const {
  const auto event = [&](const char* phase, const char* name) {
    return nlohmann::json{{"ph", phase}, {"name", name}, {"pid", world.rank()}, {"tid", 0}};
  };
  nlohmann::json process = event("M", "process_name");
  process["args"] = {{"name", fmt::format("rank {}", world.rank())}};
  std::string mine = process.dump();
  for (const Kept& kept : kept_) {
    for (size_t s = 0; s < kMoeStages; ++s) {
      const MoeCall::Stage& interval = kept.call.stages[s];
      nlohmann::json stage = event("X", kStageNames[s]);
      stage["cat"] = "moe";
      stage["ts"] = std::chrono::duration<double, std::micro>(interval.begin - origin_).count();
      stage["dur"] = interval.seconds * 1e6;
      stage["args"] = {{"layer", kept.layer}, {"tokens", kept.call.tokens}, {"rows_served", kept.call.rows_served}};
      mine += ",\n" + stage.dump();
    }
  }
  std::string text = "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n";
  const std::vector<std::string> all = world.all_gather_strings(mine);
  for (size_t r = 0; r < all.size(); ++r) text += (r == 0 ? "" : ",\n") + all[r];
  return text + "\n]}\n";
}

}  // namespace cmoe

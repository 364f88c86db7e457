#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "moe/moe_layer.h"
#include "moe/stats.h"

namespace cmoe {

/// Passes what it sees on to several observers.
class MoeObserverList final : public MoeObserver {
 public:
  void add(MoeObserver* observer) { observers_.push_back(observer); }
  void on_routing(int64_t layer, const Routing& routing) override {
    for (MoeObserver* observer : observers_) observer->on_routing(layer, routing);
  }
  void on_call(int64_t layer, const MoeCall& call) override {
    for (MoeObserver* observer : observers_) observer->on_call(layer, call);
  }

 private:
  std::vector<MoeObserver*> observers_;
};

/// Keeps the statistics of a model's MoE layers on this rank, and on request the time of every stage of every call.
class MoeRecorder final : public MoeObserver {
 public:
  /// Collective over `world`, so that the ranks' traces begin together.
  MoeRecorder(std::shared_ptr<const ExpertParallel> parallel, Communicator& world, bool keep_calls);

  void on_routing(int64_t layer, const Routing& routing) override;
  void on_call(int64_t layer, const MoeCall& call) override;

  const MoeStats& stats() const { return stats_; }

  /// The kept calls of all ranks in Chrome's trace format: a process per rank, an event per stage, microseconds. Collective;
  /// the same text on all ranks.
  std::string chrome_trace(Communicator& world) const;

 private:
  struct Kept {
    int64_t layer;
    MoeCall call;
  };

  std::shared_ptr<const ExpertParallel> parallel_;
  bool keep_calls_;
  MoeStats stats_;
  std::vector<Kept> kept_;
  std::chrono::steady_clock::time_point origin_;
};

}  // namespace cmoe

#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/timer.h"

namespace cmoe {

/// Seconds by stage, in the order stages first ran.
using StageSeconds = std::vector<std::pair<std::string, double>>;

/// A stopwatch that books the time since its last call on a stage, and adds stages up.
class StageTimes {
 public:
  void lap(const std::string& stage) {
    add(stage, timer_.seconds());
    timer_ = Timer();
  }

  /// Books stages that were measured elsewhere in the time since the last call.
  void add(const StageSeconds& measured) {
    for (const auto& [stage, seconds] : measured) add(stage, seconds);
    timer_ = Timer();
  }

  const StageSeconds& totals() const { return totals_; }

 private:
  void add(const std::string& stage, double seconds) {
    for (auto& [name, total] : totals_) {
      if (name == stage) {
        total += seconds;
        return;
      }
    }
    totals_.emplace_back(stage, seconds);
  }

  Timer timer_;
  StageSeconds totals_;
};

}  // namespace cmoe

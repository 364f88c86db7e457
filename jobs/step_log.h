#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "train/trainer.h"

namespace cmoe::jobs {

/// FOLDER/log.jsonl of a training: one JSON object a step or evaluation. Rank 0 has one.
class StepLog {
 public:
  /// Keeps the lines up to `steps_done` of a log that is there: what a resumed run had logged beyond its state happens again.
  StepLog(const std::string& folder, int64_t steps_done);

  /// @throws Error naming the file when the line cannot be written.
  void add(const nlohmann::ordered_json& line);

  /// All losses as an SVG.
  std::string plot() const;

 private:
  std::string path_;
};

/// A step's line: loss and its parts, tokens per second, norm of the gradient, loads. @param lr  of the adapters at factor 1.
/// @param distils  whether the teacher's parts of the loss belong in it.
nlohmann::ordered_json step_line(const StepReport& report, double seconds, double lr, bool distils);

}  // namespace cmoe::jobs

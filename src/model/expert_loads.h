#pragma once

#include <string>
#include <vector>

#include "model/checkpoint.h"

namespace cmoe {

/// How many tokens of the calibration text each routed expert took: what a balanced placement is made from. Kept beside a
/// carved model as `expert_loads.json` (docs/formats.md).
struct ExpertLoads {
  int64_t tokens = 0;                        ///< of the calibration text
  std::vector<std::vector<int64_t>> layers;  ///< [layers][num_routed_experts]; empty when the carve routed no tokens

  std::string to_json_text() const;
};

inline constexpr const char* kExpertLoadsFile = "expert_loads.json";

/// The loads beside a carved model. @throws Error when there are none, with what to do, or when they do not fit the model.
ExpertLoads read_expert_loads(const Checkpoint& checkpoint);

}  // namespace cmoe

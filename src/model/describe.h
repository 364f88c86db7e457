#pragma once

#include <nlohmann/json_fwd.hpp>

#include "model/checkpoint.h"

namespace cmoe {

/// What a checkpoint is, from its headers: `path`, `format`, `config` (as config.json), `parameters` by part (`total`,
/// `embedding`, `attention`, `ffn`, `router`, `norm`), `ffn_share` of all parameters, `stored_bytes`, `types` (per stored type:
/// tensors, parameters, bytes), and for a carved model `experts` ("S3A3E8") and `active_fraction` (of the dense FFN neurons, by
/// the config). A tied head counts once.
nlohmann::json describe_checkpoint(const Checkpoint& checkpoint);

}  // namespace cmoe

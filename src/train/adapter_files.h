#pragma once

#include <string>
#include <vector>

#include "train/trained_model.h"

namespace cmoe {

/// Writes the trained values as an adapter that model/adapter.h and PEFT read: adapter_config.json,
/// adapter_model.safetensors, and router.safetensors where a router has something to keep. The ranks of one group call, all of
/// them; its rank 0 writes.
/// @param base_model  what adapter_config.json names as the base. @return  the names of the files; none on the other ranks.
std::vector<std::string> write_adapter(const TrainedModel& model, const std::string& base_model, double dropout,
                                       const std::string& folder);

}  // namespace cmoe

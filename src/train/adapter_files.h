#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "train/trained_model.h"

namespace cmoe {

/// Writes the trained values as an adapter that model/adapter.h and PEFT read: adapter_config.json,
/// adapter_model.safetensors, and router.safetensors where a router has something to keep. The ranks of one group call, all of
/// them; its rank 0 writes.
/// @param base_model  what adapter_config.json names as the base. @return  the names of the files; none on the other ranks.
std::vector<std::string> write_adapter(const TrainedModel& model, const std::string& base_model, double dropout,
                                       const std::string& folder);

/// The bytes of a safetensors file with these tensors.
std::string safetensors_bytes(const std::vector<std::pair<std::string, Tensor>>& tensors,
                              const std::map<std::string, std::string>& metadata);

}  // namespace cmoe

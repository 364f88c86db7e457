#pragma once

#include <cstdint>
#include <string>

namespace cmoe {

/// Where this process is in its work, for the sentence that names a lost rank. Lock-free; any thread may write and read. A
/// reader may see the new name with the old layer for an instant.
///
/// @param name   a string literal: it is kept by address. "" before the work starts.
/// @param layer  -1 outside the layers.
void set_stage(const char* name, int64_t layer = -1);
/// Another layer of the same stage.
void set_stage_layer(int64_t layer);

struct Stage {
  std::string name;
  int64_t layer = -1;
};
Stage current_stage();

/// "carve, layer 17", "evaluate", or "start-up" before the first set_stage().
std::string to_string(const Stage& stage);

}  // namespace cmoe

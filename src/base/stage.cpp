#include "base/stage.h"

#include <fmt/format.h>

#include <atomic>

namespace cmoe {
namespace {

std::atomic<const char*> stage_name{""};
std::atomic<int64_t> stage_layer{-1};

}  // namespace

void set_stage(const char* name, int64_t layer) {
  stage_layer.store(layer, std::memory_order_relaxed);
  stage_name.store(name, std::memory_order_relaxed);
}

void set_stage_layer(int64_t layer) { stage_layer.store(layer, std::memory_order_relaxed); }

Stage current_stage() {
  return {.name = stage_name.load(std::memory_order_relaxed), .layer = stage_layer.load(std::memory_order_relaxed)};
}

std::string to_string(const Stage& stage) {
  if (stage.name.empty()) return "start-up";
  return stage.layer < 0 ? stage.name : fmt::format("{}, layer {}", stage.name, stage.layer);
}

}  // namespace cmoe

// Answers for the CUDA files in a build without CUDA; chosen in cuda/cuda.cmake.

#include "backend/gpu_info.h"

namespace cmoe {

GpuInfo gpu_info() { return {.versions = "", .reason = "none: built without CUDA", .devices = {}}; }

}  // namespace cmoe

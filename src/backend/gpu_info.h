#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cmoe {

struct GpuDevice {
  std::string name;
  int64_t memory_bytes = 0;
  int major = 0, minor = 0;  ///< compute capability
};

struct GpuInfo {
  std::string versions;            ///< of CUDA's runtime and driver; empty in a build without CUDA
  std::string reason;              ///< why there is no device; empty when there is one
  std::vector<GpuDevice> devices;  ///< that this process sees (CUDA_VISIBLE_DEVICES counts)
};

/// Asks the CUDA runtime what GPUs there are; never throws for want of one. A build without CUDA says just that.
GpuInfo gpu_info();

}  // namespace cmoe

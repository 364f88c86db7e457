// What GPUs there are, asked of the CUDA runtime. Links and runs without a driver.

#include "backend/gpu_info.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

namespace cmoe {
namespace {

// 13000 -> "13.0".
std::string version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

}  // namespace

GpuInfo gpu_info() {
  GpuInfo info;
  int runtime = 0, driver = 0, count = 0;
  cudaRuntimeGetVersion(&runtime);
  cudaDriverGetVersion(&driver);
  // The runtime gives 0 for the driver's version where there is no driver.
  info.versions = fmt::format("runtime {}, {}", version_text(runtime),
                              driver == 0 ? "no driver" : "driver for CUDA up to " + version_text(driver));
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    const bool no_driver = driver == 0 || status == cudaErrorInsufficientDriver;
    info.reason = status == cudaSuccess
                      ? "none: the driver sees no device"
                      : fmt::format("none: {}: {}", no_driver ? "no driver" : "no device", cudaGetErrorString(status));
    return info;
  }
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties{};
    if (const cudaError_t failure = cudaGetDeviceProperties(&properties, device); failure != cudaSuccess) {
      info.reason = fmt::format("device {} does not answer: {}", device, cudaGetErrorString(failure));
      continue;
    }
    info.devices.push_back({.name = properties.name,
                            .memory_bytes = static_cast<int64_t>(properties.totalGlobalMem),
                            .major = properties.major,
                            .minor = properties.minor});
  }
  return info;
}

}  // namespace cmoe

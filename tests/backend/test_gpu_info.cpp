#include <gmock/gmock.h>

#include "backend/gpu_info.h"

namespace cmoe {
namespace {

using ::testing::StartsWith;

TEST(GpuInfo, NamesTheDevicesOrSaysWhyThereAreNone) {
  const GpuInfo info = gpu_info();
  if (info.devices.empty()) {
    EXPECT_THAT(info.reason, StartsWith("none: "));
    if (info.versions.empty()) {
      EXPECT_EQ(info.reason, "none: built without CUDA");
    }
  }
  for (const GpuDevice& device : info.devices) {
    EXPECT_FALSE(device.name.empty());
    EXPECT_GT(device.memory_bytes, int64_t{1} << 30);
    EXPECT_GE(device.major, 5);
  }
}

}  // namespace
}  // namespace cmoe

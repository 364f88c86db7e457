// The one file that includes nccl.h.

#include <fmt/format.h>
#include <nccl.h>

#include "comm/nccl_version.h"

namespace cmoe {

std::string nccl_version() {
  int version = 0;
  if (const ncclResult_t status = ncclGetVersion(&version); status != ncclSuccess) return ncclGetErrorString(status);
  return fmt::format("{}.{}.{}", version / 10000, version % 10000 / 100, version % 100);  // 22809 -> 2.28.9
}

}  // namespace cmoe

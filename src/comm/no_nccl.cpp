// Answers for nccl.cpp in a build without NCCL; chosen in backend/cuda/cuda.cmake.

#include "comm/nccl_version.h"

namespace cmoe {

std::string nccl_version() { return "built without NCCL"; }

}  // namespace cmoe

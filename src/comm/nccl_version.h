#pragma once

#include <string>

namespace cmoe {

/// "2.28.9", or "built without NCCL".
std::string nccl_version();

}  // namespace cmoe

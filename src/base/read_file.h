#pragma once

#include <string>

namespace cmoe {

/// The whole content of a file. @throws Error naming the path when it cannot be read.
std::string read_file(const std::string& path);

}  // namespace cmoe

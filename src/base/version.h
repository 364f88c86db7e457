#pragma once

#include <string>

namespace cmoe {

/// "0.1.0 (a1b2c3d4e5f6, Release)": version, source revision, build type.
const std::string& version_string();

}  // namespace cmoe

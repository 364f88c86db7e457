#pragma once

#include <string_view>

namespace cmoe {

/// The Python files that an exported folder carries so that `transformers` loads it with trust_remote_code, as they stand in
/// src/model/export at build time: the program needs no file of its own at run time.
std::string_view modeling_source();       ///< modeling_cmoe.py
std::string_view configuration_source();  ///< configuration_cmoe.py

}  // namespace cmoe

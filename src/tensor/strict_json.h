#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace cmoe {

/// Parses JSON text and refuses what a lenient parser would accept in silence: a name that occurs twice in an object.
/// @throws Error "`where`: ..." with the parser's message, or naming the duplicate.
nlohmann::json parse_strict_json(std::string_view text, const std::string& where);

}  // namespace cmoe

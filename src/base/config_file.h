#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace cmoe {

struct ConfigLine {
  std::string key, value;
  int line;  // counted from 1
};

/// Reads `key = value` lines. '#' at the start of a line or after a space begins a comment; a value in double quotes may hold
/// anything (\" \\ \n inside). `name` is the file's name for messages.
/// @throws Error with the line's number when a line is neither.
std::vector<ConfigLine> parse_config(std::string_view text, const std::string& name);

/// `key = value` and a newline, quoted where parse_config needs it.
std::string config_line(const std::string& key, const std::string& value);

}  // namespace cmoe

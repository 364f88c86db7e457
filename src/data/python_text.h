#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace cmoe {

// What Python's str methods do to valid UTF-8; data sets and the harness are defined by them.

/// `str.isspace()` of one character.
bool is_python_space(char32_t code_point);
std::string_view python_lstrip(std::string_view text);
std::string_view python_rstrip(std::string_view text);
std::string_view python_strip(std::string_view text);
/// The first letter in upper case, all others in lower case; letters that would become two stay.
std::string python_capitalize(std::string_view text);
/// `text.replace(from, to)`: left to right, not overlapping; `from` is not empty.
std::string python_replace(std::string_view text, std::string_view from, std::string_view to);
/// `len(text)`: code points.
int64_t python_length(std::string_view text);
/// `len(re.split(r"\s+", text))`: one more than the runs of white space.
int64_t python_words(std::string_view text);

}  // namespace cmoe

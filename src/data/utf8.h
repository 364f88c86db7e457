#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace cmoe {

/// What stands at one position of a byte string.
struct Utf8Step {
  size_t length;   // bytes of the character, or of the maximal broken prefix (>= 1)
  bool valid;      // the bytes are one whole UTF-8 character
  bool truncated;  // not valid only because the text ends inside the character
};

/// Reads the character at `position` (< text.size()). No overlong forms, no surrogates, nothing above U+10FFFF.
Utf8Step utf8_step(std::string_view text, size_t position);

/// Byte offset of the first byte that is not UTF-8, or npos.
size_t find_invalid_utf8(std::string_view text);

/// The code point at `position` of valid UTF-8; moves `position` behind it.
char32_t next_code_point(std::string_view text, size_t& position);

void append_utf8(std::string& text, char32_t code_point);

/// Every maximal broken prefix becomes one U+FFFD, as browsers, Rust and Python do.
std::string replace_invalid_utf8(std::string_view text);

/// Unicode normalisation form C of valid UTF-8.
std::string nfc(std::string_view text);

/// Upper or lower case of valid UTF-8, letter by letter: what needs more than one ('ß' to "SS") stays.
std::string change_case(std::string_view text, bool upper);

/// Unicode property White_Space.
bool is_white_space(char32_t code_point);

/// Unicode general category Nd, Nl or No.
bool is_numeric(char32_t code_point);

/// A letter, mark, decimal digit or connector punctuation: what regular expressions call \w.
bool is_word_character(char32_t code_point);

}  // namespace cmoe

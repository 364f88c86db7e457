#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cmoe::jinja {

struct Token {
  enum class Kind { data, block_begin, block_end, output_begin, output_end, name, string, integer, real, symbol, end };
  Kind kind = Kind::end;
  std::string text;  // of a string: without quotes and escapes
  int line = 1;
};

/// Cuts a template into tokens, with white space treated as `transformers` sets Jinja up: trim_blocks, lstrip_blocks, and the
/// newline at the very end dropped; `-` and `+` marks as usual. Comments vanish. Throws Error with the line.
std::vector<Token> tokenize(std::string_view source);

}  // namespace cmoe::jinja

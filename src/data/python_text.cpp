#include "data/python_text.h"

#include <algorithm>

#include "data/utf8.h"

namespace cmoe {

bool is_python_space(char32_t code_point) { return is_white_space(code_point) || (code_point >= 0x1c && code_point <= 0x1f); }

std::string_view python_lstrip(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    if (!is_python_space(next_code_point(text, at))) return text.substr(begin);
  }
  return {};
}

std::string_view python_rstrip(std::string_view text) {
  size_t end = 0;
  for (size_t at = 0; at < text.size();) {
    if (!is_python_space(next_code_point(text, at))) end = at;
  }
  return text.substr(0, end);
}

std::string_view python_strip(std::string_view text) { return python_rstrip(python_lstrip(text)); }

std::string python_capitalize(std::string_view text) {
  if (text.empty()) return {};
  size_t first = 0;
  next_code_point(text, first);
  return change_case(text.substr(0, first), /*upper=*/true) + change_case(text.substr(first), /*upper=*/false);
}

std::string python_replace(std::string_view text, std::string_view from, std::string_view to) {
  std::string result;
  for (;;) {
    const size_t at = text.find(from);
    result += text.substr(0, at);
    if (at == std::string_view::npos) return result;
    result += to;
    text.remove_prefix(at + from.size());
  }
}

int64_t python_length(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char byte) { return (static_cast<unsigned char>(byte) & 0xc0) != 0x80; });
}

int64_t python_words(std::string_view text) {
  int64_t runs = 0;
  bool inside = false;
  for (size_t at = 0; at < text.size();) {
    const bool space = is_python_space(next_code_point(text, at));
    runs += space && !inside;
    inside = space;
  }
  return runs + 1;
}

}  // namespace cmoe

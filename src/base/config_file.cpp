#include "base/config_file.h"

#include <algorithm>

#include "base/error.h"

namespace cmoe {
namespace {

constexpr std::string_view kSpace = " \t\r";

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

std::string_view without_comment(std::string_view text) {
  for (size_t at = text.find('#'); at != std::string_view::npos; at = text.find('#', at + 1)) {
    if (at == 0 || kSpace.find(text[at - 1]) != std::string_view::npos) return text.substr(0, at);
  }
  return text;
}

// The content of a quoted value; `text` starts with the quote and may go on with a comment.
std::string unquoted(std::string_view text, const std::string& where) {
  std::string value;
  for (size_t i = 1; i < text.size(); ++i) {
    if (text[i] == '"') {
      const std::string_view rest = trimmed(without_comment(text.substr(i + 1)));
      CMOE_CHECK(rest.empty(), "{}: '{}' after the closing quote; expected the end of the line", where, rest);
      return value;
    }
    if (text[i] == '\\' && i + 1 < text.size()) {
      ++i;
      value += text[i] == 'n' ? '\n' : text[i];
    } else {
      value += text[i];
    }
  }
  fail("{}: no closing quote; expected \"...\"", where);
}

}  // namespace

std::vector<ConfigLine> parse_config(std::string_view text, const std::string& name) {
  std::vector<ConfigLine> lines;
  for (int number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = trimmed(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (trimmed(without_comment(line)).empty()) continue;
    const std::string where = fmt::format("{}:{}", name, number);
    const size_t equals = line.find('=');
    const std::string_view key = trimmed(line.substr(0, equals));
    CMOE_CHECK(equals != std::string_view::npos && !key.empty(), "{}: '{}'; expected key = value", where, line);
    const std::string_view value = trimmed(line.substr(equals + 1));
    const bool quoted = value.starts_with('"');
    lines.push_back({std::string(key), quoted ? unquoted(value, where) : std::string(trimmed(without_comment(value))), number});
  }
  return lines;
}

std::string config_line(const std::string& key, const std::string& value) {
  const bool plain = !value.empty() && trimmed(value) == value && value.find_first_of("\"\\#\n\r") == std::string::npos;
  if (plain) return key + " = " + value + "\n";
  std::string quoted;
  for (const char c : value) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c == '\n' ? std::string("\\n") : std::string(1, c);
  }
  return key + " = \"" + quoted + "\"\n";
}

}  // namespace cmoe

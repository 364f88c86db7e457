#include "data/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/error.h"

namespace cmoe {
namespace {

const pcre2_code* code_of(const std::shared_ptr<const void>& code) { return static_cast<const pcre2_code*>(code.get()); }

std::string message_of(int error) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(error, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

/// The pattern with Oniguruma's `\s` spelled out: PCRE2's own also matches U+180E, which is no white space.
std::string translate(std::string_view pattern, const std::string& where) {
  std::string result;
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] == '[' && i + 1 < pattern.size() && pattern[i + 1] == ':') {
      fail("{}: POSIX classes such as [:alpha:] are not supported; found '{}'", where, pattern);
    }
    if (pattern[i] != '\\' || i + 1 == pattern.size()) {
      result += pattern[i];
      continue;
    }
    const char c = pattern[++i];
    if (c == 's') {
      result += "\\p{White_Space}";
    } else if (c == 'S') {
      result += "\\P{White_Space}";
    } else if (c == 'w' || c == 'W' || c == 'b' || c == 'B') {
      fail("{}: '\\{}' is not supported in a pattern; found '{}'", where, c, pattern);
    } else {
      result += '\\';
      result += c;
    }
  }
  return result;
}

}  // namespace

Regex::Regex(std::string_view pattern, std::string where) : where_(std::move(where)) {
  const std::string translated = translate(pattern, where_);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                   PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
  if (code == nullptr) {
    fail("{}: pattern '{}' does not compile; {} at byte {} of its translation", where_, pattern, message_of(error), offset);
  }
  // Without JIT support the interpreter does the same work, slower.
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  code_ =
      std::shared_ptr<const void>(code, [](const void* p) { pcre2_code_free(static_cast<pcre2_code*>(const_cast<void*>(p))); });
}

Regex Regex::literal(std::string_view text, std::string where) {
  std::string pattern;
  for (char c : text) {
    const bool plain = (c & 0x80) != 0 || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c < ' ';
    if (!plain) pattern += '\\';
    pattern += c;
  }
  return Regex(pattern, std::move(where));
}

bool Regex::find_next(std::string_view text, size_t from, size_t& begin, size_t& end) const {
  // One pair of offsets, the whole match, is all that is read.
  thread_local const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(
      pcre2_match_data_create(1, nullptr), &pcre2_match_data_free);
  const auto match = [&](uint32_t options) {
    return pcre2_match(code_of(code_), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                       PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY | options, data.get(), nullptr);
  };
  int rc = match(0);
  if (rc == PCRE2_ERROR_JIT_STACKLIMIT) rc = match(PCRE2_NO_JIT);  // the interpreter's stack is on the heap
  if (rc == PCRE2_ERROR_NOMATCH) return false;
  if (rc < 0) fail("{}: matching failed at byte {}; {}", where_, from, message_of(rc));
  const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data.get());
  begin = ends[0];
  end = ends[1];
  return true;
}

}  // namespace cmoe

#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace cmoe {

/// A compiled regular expression (PCRE2, JIT where the machine has it) over UTF-8 with Unicode classes.
///
/// The patterns of tokenizer files are written for Oniguruma; `\s` and `\S` are given its meaning (Unicode White_Space).
/// `\w`, `\b` and POSIX classes differ between the two engines and are refused.
class Regex {
 public:
  /// @param where names the pattern in error messages. Throws Error when the pattern is wrong or refused.
  Regex(std::string_view pattern, std::string where);

  /// Matches one fixed string.
  static Regex literal(std::string_view text, std::string where);

  /// Calls visit(begin, end) for every match in valid UTF-8 `text`, left to right, not overlapping.
  template <class Visit>
  void for_each_match(std::string_view text, Visit&& visit) const {
    size_t begin = 0;
    size_t end = 0;
    while (find_next(text, end, begin, end)) visit(begin, end);
  }

  /// First match at or after `from` that is not empty.
  bool find_next(std::string_view text, size_t from, size_t& begin, size_t& end) const;

 private:
  std::shared_ptr<const void> code_;
  std::string where_;
};

}  // namespace cmoe

#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace cmoe {

/// Exit codes of the program. `requeue` is EX_TEMPFAIL: state was saved, run the same command again.
enum class ExitCode : int { ok = 0, failure = 1, user = 2, requeue = 75 };

/// The one exception type. The message reads *where: what; expected, found; hint*.
class Error : public std::runtime_error {
 public:
  explicit Error(std::string message, ExitCode code = ExitCode::user) : std::runtime_error(std::move(message)), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

/// Throws an Error the user can act on (exit code 2): a bad option, file, shape or size.
template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...), ExitCode::user);
}

/// Throws an Error of the machine or of the program (exit code 1): disk full, a lost rank, a broken invariant.
template <class... Args>
[[noreturn]] void fail_internal(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...), ExitCode::failure);
}

}  // namespace cmoe

/// Checks what input can break; the message is a fmt format string and its arguments.
#define CMOE_CHECK(condition, ...)               \
  do {                                           \
    if (!(condition)) ::cmoe::fail(__VA_ARGS__); \
  } while (false)

#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <utility>

namespace cmoe {

/// Who speaks. Rank 0 tells, warns and fails; another rank only warns and fails, and says who it is.
struct LogSettings {
  int rank = 0;
  int size = 1;
  std::string host;
  bool quiet = false;  // no information and no progress; warnings and errors stay
};

/// Set once, after the ranks are known; until then this process speaks as rank 0 of 1.
void set_log(LogSettings settings);
/// For the thread that sets them.
const LogSettings& log_settings();

enum class LogLevel { info, warn, error };

/// One line to stderr, when this rank may speak at this level. Any thread may call.
/// "message", "warning: message", "error: message"; on ranks other than 0 after "[rank r/n host] ".
void log_line(LogLevel level, std::string_view message);

template <class... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::info, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void log_warn(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::warn, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void log_error(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::error, fmt::format(format, std::forward<Args>(args)...));
}

/// Tells the log that an unfinished progress line stands on the terminal, to be cleared before the next message.
void set_open_terminal_line(bool open);

}  // namespace cmoe

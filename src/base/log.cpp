#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <mutex>

namespace cmoe {
namespace {

std::mutex settings_mutex;
LogSettings settings_of_process;
std::atomic<bool> terminal_line_open{false};

spdlog::logger& logger() {
  static const auto instance = [] {
    auto made = std::make_shared<spdlog::logger>("cmoe", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%v");
    made->flush_on(spdlog::level::info);
    return made;
  }();
  return *instance;
}

}  // namespace

void set_log(LogSettings settings) {
  const std::lock_guard lock(settings_mutex);
  settings_of_process = std::move(settings);
}

const LogSettings& log_settings() { return settings_of_process; }

void log_line(LogLevel level, std::string_view message) {
  const LogSettings who = [] {
    const std::lock_guard lock(settings_mutex);
    return settings_of_process;
  }();
  if (level == LogLevel::info && (who.quiet || who.rank != 0)) return;
  std::string line = terminal_line_open.exchange(false) ? "\r\x1b[K" : "";
  if (who.rank != 0) line += fmt::format("[rank {}/{} {}] ", who.rank, who.size, who.host);
  if (level == LogLevel::warn) line += "warning: ";
  if (level == LogLevel::error) line += "error: ";
  line += message;
  static constexpr spdlog::level::level_enum kLevels[] = {spdlog::level::info, spdlog::level::warn, spdlog::level::err};
  logger().log(kLevels[static_cast<int>(level)], spdlog::string_view_t(line));
}

void set_open_terminal_line(bool open) { terminal_line_open = open; }

}  // namespace cmoe

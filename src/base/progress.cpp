#include "base/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>

#include "base/format.h"
#include "base/log.h"
#include "base/timer.h"

namespace cmoe {
namespace {

constexpr double kTerminalIntervalS = 0.2;
constexpr double kPlainIntervalS = 5;

size_t terminal_columns() {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

Progress::Output Progress::standard_output() {
  const bool terminal = isatty(STDERR_FILENO) == 1;
  return {.speaks = log_settings().rank == 0 && !log_settings().quiet,
          .terminal = terminal,
          .interval_s = terminal ? kTerminalIntervalS : kPlainIntervalS,
          .write =
              [](std::string_view text) {
                std::fwrite(text.data(), 1, text.size(), stderr);
                std::fflush(stderr);
              },
          .clock = [timer = Timer()] { return timer.seconds(); }};
}

Progress::Progress(std::string label, int64_t total, std::string unit, Output output)
    : label_(std::move(label)), unit_(std::move(unit)), total_(total), output_(std::move(output)) {
  start_ = last_shown_ = output_.clock();
}

Progress::~Progress() {
  if (!line_open_) return;
  try {
    set_open_terminal_line(false);
    output_.write("\n");
  } catch (...) {  // a closed stderr must not hide the error that ends the work
  }
}

void Progress::advance(int64_t units) {
  const std::lock_guard lock(mutex_);
  done_ += units;
  if (!output_.speaks || finished_) return;
  const double now = output_.clock();
  if (now - last_shown_ < output_.interval_s) return;
  last_shown_ = now;
  show(line(now - start_));
}

void Progress::finish() {
  const std::lock_guard lock(mutex_);
  if (finished_) return;
  finished_ = true;
  if (!output_.speaks) return;
  const double seconds = output_.clock() - start_;
  std::string text = fmt::format("{}: {} {} in {}", label_, format_count(done_), unit_, format_duration(seconds));
  if (seconds > 0) text += fmt::format(", {} {}/s", format_number(static_cast<double>(done_) / seconds), unit_);
  show(text);
  if (!output_.terminal) return;
  output_.write("\n");
  line_open_ = false;
  set_open_terminal_line(false);
}

std::string Progress::line(double seconds) const {
  std::string text = fmt::format("{}: {}", label_, format_count(done_));
  if (total_ > 0) text += fmt::format("/{}", format_count(total_));
  text += fmt::format(" {}", unit_);
  if (total_ > 0)
    text += fmt::format("  {}%", static_cast<int>(100.0 * static_cast<double>(done_) / static_cast<double>(total_)));
  if (seconds <= 0 || done_ == 0) return text;
  const double rate = static_cast<double>(done_) / seconds;
  text += fmt::format("  {} {}/s", format_number(rate), unit_);
  if (total_ > done_) text += fmt::format("  ETA {}", format_duration(static_cast<double>(total_ - done_) / rate));
  return text;
}

void Progress::show(const std::string& text) {
  if (!output_.terminal) return output_.write(text + "\n");
  // A line that wraps cannot be rewritten.
  output_.write("\r\x1b[K" + text.substr(0, terminal_columns() - 1));
  line_open_ = true;
  set_open_terminal_line(true);
}

}  // namespace cmoe

#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>

namespace cmoe {

/// Progress of one piece of work, on stderr: on a terminal one line that is rewritten, else a plain line every few seconds; in
/// both cases a last line with the mean rate. Says nothing when the log is quiet and on ranks other than 0.
///
///     Progress progress("profile", tokens, "tokens");
///     progress.advance(batch);   // profile: 12,288/100,000 tokens  12%  1,234 tokens/s  ETA 1m 11s
///     progress.finish();         // profile: 100,000 tokens in 1m 21s, 1,235 tokens/s
class Progress {
 public:
  /// Where and when to write; tests replace all of it.
  struct Output {
    bool speaks;                                  // false: write nothing
    bool terminal;                                // rewrite one line
    double interval_s;                            // between two lines
    std::function<void(std::string_view)> write;  // receives text with its line ends
    std::function<double()> clock;                // seconds, monotonic
  };
  /// stderr and the steady clock; 0.2 s on a terminal, else 5 s.
  static Output standard_output();

  /// @param total  units of work in all; 0 when unknown (no percentage, no ETA).
  Progress(std::string label, int64_t total, std::string unit, Output output = standard_output());
  /// Work that ends without finish() (an error) leaves its last line as it is.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `units` more are done. Any thread may call.
  void advance(int64_t units);
  /// Writes the last line; later calls do nothing.
  void finish();

 private:
  std::string line(double seconds) const;
  void show(const std::string& text);

  const std::string label_, unit_;
  const int64_t total_;
  const Output output_;
  std::mutex mutex_;
  int64_t done_ = 0;
  double start_, last_shown_;
  bool line_open_ = false, finished_ = false;
};

}  // namespace cmoe

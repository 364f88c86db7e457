#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cmoe {

/// "-1,234,567".
std::string format_count(int64_t count);
/// "512 B", "1.5 KiB", "3.2 GiB": binary units, one decimal.
std::string format_bytes(int64_t bytes);
/// "3.2 ms", "4.2 s", "1m 05s", "2h 03m", "3d 04h". Anything below zero or not finite is "?".
std::string format_duration(double seconds);
/// Three digits at least: "1,234", "45.2", "0.52", for rates and other measured numbers.
std::string format_number(double value);

/// A table of text with aligned columns. A column whose cells all read as numbers (12, -3.5, 1,234, 45%, 1.5e-3) is aligned to
/// the right, its header too.
class Table {
 public:
  explicit Table(std::vector<std::string> headers);
  /// @throws Error when the row does not have one cell per header.
  void add_row(std::vector<std::string> cells);
  /// Header, a rule and the rows, each line ended by a newline; two spaces between columns, none at the end of a line.
  std::string text() const;

 private:
  std::vector<std::string> headers_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace cmoe

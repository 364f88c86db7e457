#include "base/format.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>

#include "base/error.h"

namespace cmoe {
namespace {

bool reads_as_number(const std::string& cell) {
  return std::any_of(cell.begin(), cell.end(), [](unsigned char c) { return std::isdigit(c); }) &&
         cell.find_first_not_of("0123456789+-.,eE%") == std::string::npos;
}

// Columns that a terminal uses for UTF-8 text: one per code point is right for what we print.
size_t width_of(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

}  // namespace

std::string format_count(int64_t count) {
  std::string text = std::to_string(count);
  const int64_t first = count < 0 ? 1 : 0;
  for (int64_t at = static_cast<int64_t>(text.size()) - 3; at > first; at -= 3) text.insert(static_cast<size_t>(at), 1, ',');
  return text;
}

std::string format_bytes(int64_t bytes) {
  static constexpr std::array<const char*, 6> kUnits{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (std::abs(bytes) < 1024) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  // 1023.95 would be printed as 1024.0.
  while (std::abs(value) >= 1023.95 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  return fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string format_duration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "?";
  if (seconds < 0.9995) return fmt::format("{:.3g} ms", seconds * 1e3);
  if (seconds < 59.95) return fmt::format("{:.1f} s", seconds);
  if (seconds > 1e15) return "?";
  const int64_t whole = std::llround(seconds);
  if (whole < 3600) return fmt::format("{}m {:02}s", whole / 60, whole % 60);
  const int64_t minutes = whole / 60;
  if (minutes < 24 * 60) return fmt::format("{}h {:02}m", minutes / 60, minutes % 60);
  return fmt::format("{}d {:02}h", minutes / 60 / 24, minutes / 60 % 24);
}

std::string format_number(double value) {
  const double size = std::abs(value);
  if (!std::isfinite(value)) return "?";
  if (size >= 99.95 && size < 9e18) return format_count(std::llround(value));
  if (size >= 9.995) return fmt::format("{:.1f}", value);
  return size >= 0.01 || size == 0 ? fmt::format("{:.2f}", value) : fmt::format("{:.2g}", value);
}

Table::Table(std::vector<std::string> headers) : headers_(std::move(headers)) {}

void Table::add_row(std::vector<std::string> cells) {
  CMOE_CHECK(cells.size() == headers_.size(), "table: row of {} cells; expected {}", cells.size(), headers_.size());
  rows_.push_back(std::move(cells));
}

std::string Table::text() const {
  std::vector<size_t> widths;
  std::vector<bool> right;
  for (size_t c = 0; c < headers_.size(); ++c) {
    size_t width = width_of(headers_[c]);
    bool numbers = !rows_.empty();
    for (const auto& row : rows_) {
      width = std::max(width, width_of(row[c]));
      numbers = numbers && (row[c].empty() || row[c] == "-" || reads_as_number(row[c]));
    }
    widths.push_back(width);
    right.push_back(numbers);
  }
  std::string out;
  const auto add_line = [&](const std::vector<std::string>& cells) {
    std::string line;
    for (size_t c = 0; c < cells.size(); ++c) {
      const std::string space(widths[c] - width_of(cells[c]), ' ');
      line += (c > 0 ? "  " : "") + (right[c] ? space + cells[c] : cells[c] + space);
    }
    out += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  };
  add_line(headers_);
  std::vector<std::string> rule;
  for (const size_t width : widths) rule.emplace_back(width, '-');
  add_line(rule);
  for (const auto& row : rows_) add_line(row);
  return out;
}

}  // namespace cmoe

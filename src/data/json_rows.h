#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace cmoe {

/// One object of a JSON lines file.
struct JsonRow {
  nlohmann::json value;
  std::string where;  ///< "file: line 12", for messages

  bool has(const std::string& key) const { return value.contains(key); }
  /// @throws Error naming file, line and key when it is missing or of another type, with the keys that are there.
  const std::string& text(const std::string& key) const;
  std::vector<std::string> texts(const std::string& key) const;
  /// An integer, a bool as 0 or 1, or a string of digits: data sets write labels in all three ways.
  int64_t number(const std::string& key) const;
};

/// Calls visit(row) for the rows of a JSON lines file, plain or gzip; blank lines do not count.
/// @throws Error naming file and line: unreadable, not UTF-8, not a JSON object.
void for_each_json_row(const std::string& path, const std::function<void(JsonRow&&)>& visit);

/// All of them. @throws Error also when there is none.
std::vector<JsonRow> read_json_rows(const std::string& path);

}  // namespace cmoe

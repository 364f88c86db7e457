#include "data/json_rows.h"

#include "base/error.h"
#include "data/text.h"

namespace cmoe {
namespace {

[[noreturn]] void refuse(const JsonRow& row, const std::string& key, std::string_view expected) {
  std::string keys;
  for (const auto& [name, value] : row.value.items()) keys += (keys.empty() ? "" : ", ") + name;
  fail("{} has no {} \"{}\"; found keys {}", row.where, expected, key, keys.empty() ? "none" : keys);
}

}  // namespace

const std::string& JsonRow::text(const std::string& key) const {
  const auto found = value.find(key);
  if (found == value.end() || !found->is_string()) refuse(*this, key, "string");
  return found->get_ref<const std::string&>();
}

std::vector<std::string> JsonRow::texts(const std::string& key) const {
  const auto found = value.find(key);
  if (found == value.end() || !found->is_array()) refuse(*this, key, "list of strings");
  std::vector<std::string> list;
  for (const auto& item : *found) {
    if (!item.is_string()) refuse(*this, key, "list of strings");
    list.push_back(item.get<std::string>());
  }
  return list;
}

int64_t JsonRow::number(const std::string& key) const {
  const auto found = value.find(key);
  if (found == value.end()) refuse(*this, key, "number");
  if (found->is_boolean()) return found->get<bool>() ? 1 : 0;
  if (found->is_number_integer()) return found->get<int64_t>();
  const auto* digits = found->get_ptr<const std::string*>();
  if (digits == nullptr || digits->empty() || digits->size() > 9 ||
      digits->find_first_not_of("0123456789") != std::string::npos)
    refuse(*this, key, "number");
  return std::stoll(*digits);
}

void for_each_json_row(const std::string& path, const std::function<void(JsonRow&&)>& visit) {
  const std::string bytes = read_utf8_file(path);
  int64_t number = 0;
  for (size_t begin = 0; begin < bytes.size();) {
    const size_t end = std::min(bytes.find('\n', begin), bytes.size());
    const std::string_view line = std::string_view(bytes).substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    JsonRow row{.value = nlohmann::json::parse(line, nullptr, false), .where = fmt::format("{}: line {}", path, number)};
    CMOE_CHECK(row.value.is_object(), "{} is not a JSON object; expected JSON lines", row.where);
    visit(std::move(row));
  }
}

std::vector<JsonRow> read_json_rows(const std::string& path) {
  std::vector<JsonRow> rows;
  for_each_json_row(path, [&](JsonRow&& row) { rows.push_back(std::move(row)); });
  CMOE_CHECK(!rows.empty(), "{}: holds no rows; expected JSON lines", path);
  return rows;
}

}  // namespace cmoe

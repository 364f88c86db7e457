#include "tensor/strict_json.h"

#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "base/error.h"

namespace cmoe {

nlohmann::json parse_strict_json(std::string_view text, const std::string& where) {
  using Event = nlohmann::json::parse_event_t;
  std::vector<std::set<std::string>> open_objects;
  const auto refuse_duplicates = [&](int, Event event, nlohmann::json& value) {
    if (event == Event::object_start) open_objects.emplace_back();
    if (event == Event::object_end) open_objects.pop_back();
    if (event == Event::key) {
      const auto& key = value.get_ref<const std::string&>();
      CMOE_CHECK(open_objects.back().insert(key).second, "{}: the name '{}' occurs twice", where, key);
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text.begin(), text.end(), refuse_duplicates);
  } catch (const nlohmann::json::exception& error) {
    fail("{}: is not valid JSON: {}", where, error.what());
  }
}

}  // namespace cmoe

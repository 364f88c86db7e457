#include "data/normalizer.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "data/utf8.h"

namespace cmoe {

Normalizer::Normalizer(const nlohmann::json& spec, const std::string& where) {
  if (!spec.is_null()) add(spec, where);
}

void Normalizer::add(const nlohmann::json& spec, const std::string& where) {
  const auto type = spec.at("type").get<std::string>();
  if (type == "Sequence") {
    size_t i = 0;
    for (const auto& step : spec.at("normalizers")) add(step, fmt::format("{}.normalizers[{}]", where, i++));
  } else if (type == "NFC") {
    steps_.push_back({Kind::nfc, {}, {}});
  } else if (type == "Prepend") {
    steps_.push_back({Kind::prepend, {}, spec.at("prepend").get<std::string>()});
  } else if (type == "Replace") {
    const auto& pattern = spec.at("pattern");
    CMOE_CHECK(pattern.contains("String"), "{}.pattern: only a fixed String is supported; found {}", where, pattern.dump());
    steps_.push_back({Kind::replace, pattern.at("String").get<std::string>(), spec.at("content").get<std::string>()});
    CMOE_CHECK(!steps_.back().pattern.empty(), "{}.pattern: an empty String matches everywhere; expected at least a character",
               where);
  } else {
    fail("{}.type: normalizer '{}' is not supported; expected NFC, Prepend, Replace or a Sequence of them", where, type);
  }
}

std::string Normalizer::apply(std::string_view text) const {
  std::string result(text);
  for (const Step& step : steps_) {
    switch (step.kind) {
      case Kind::nfc:
        result = nfc(result);
        break;
      case Kind::prepend:
        if (!result.empty()) result.insert(0, step.content);
        break;
      case Kind::replace:
        result = replace_all(result, step.pattern, step.content);
        break;
    }
  }
  return result;
}

std::string replace_all(std::string_view text, std::string_view pattern, std::string_view content) {
  std::string result;
  result.reserve(text.size());
  for (size_t position = 0;;) {
    const size_t hit = text.find(pattern, position);
    result.append(text.substr(position, hit - position));
    if (hit == std::string_view::npos) return result;
    result.append(content);
    position = hit + pattern.size();
  }
}

}  // namespace cmoe

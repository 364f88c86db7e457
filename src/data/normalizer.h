#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace cmoe {

/// What is done to a text before it is split: NFC, Prepend, Replace (of a fixed string), or a Sequence of these.
class Normalizer {
 public:
  Normalizer() = default;

  /// @param spec the `normalizer` of a tokenizer.json, null for none. Throws Error naming `where` and the field it refuses.
  Normalizer(const nlohmann::json& spec, const std::string& where);

  bool empty() const { return steps_.empty(); }
  std::string apply(std::string_view text) const;

 private:
  enum class Kind { nfc, prepend, replace };
  struct Step {
    Kind kind;
    std::string pattern;
    std::string content;
  };
  void add(const nlohmann::json& spec, const std::string& where);

  std::vector<Step> steps_;
};

/// `text` with every `pattern` (not empty) replaced, left to right.
std::string replace_all(std::string_view text, std::string_view pattern, std::string_view content);

}  // namespace cmoe

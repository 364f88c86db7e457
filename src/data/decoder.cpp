#include "data/decoder.h"

#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "data/byte_level.h"
#include "data/normalizer.h"
#include "data/utf8.h"

namespace cmoe {
namespace {

/// The byte of a token spelled <0xXX>.
std::optional<char> find_fallback_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return std::nullopt;
  int value = 0;
  for (char c : token.substr(3, 2)) {
    const bool digit = c >= '0' && c <= '9';
    const bool letter = c >= 'A' && c <= 'F';
    if (!digit && !letter) return std::nullopt;
    value = value * 16 + (digit ? c - '0' : c - 'A' + 10);
  }
  return static_cast<char>(value);
}

}  // namespace

Decoder::Decoder(const nlohmann::json& spec, const std::string& where) {
  CMOE_CHECK(!spec.is_null(), "{}: null is not supported; expected ByteLevel, Metaspace or a Sequence", where);
  add(spec, where);
}

void Decoder::add(const nlohmann::json& spec, const std::string& where) {
  const auto type = spec.at("type").get<std::string>();
  if (type == "ByteLevel") {
    byte_level_ = true;
  } else if (type == "Metaspace") {
    pattern_ = spec.at("replacement").get<std::string>();
    content_ = std::string(1, ' ');
    drop_in_first_ = spec.value("prepend_scheme", spec.value("add_prefix_space", true) ? "always" : "never") != "never";
  } else if (type == "Sequence") {
    size_t i = 0;
    for (const auto& step : spec.at("decoders")) add(step, fmt::format("{}.decoders[{}]", where, i++));
  } else if (type == "Replace") {
    const auto& pattern = spec.at("pattern");
    CMOE_CHECK(pattern.contains("String") && pattern_.empty(),
               "{}.pattern: only one Replace of a fixed String is supported; found {}", where, pattern.dump());
    pattern_ = pattern.at("String").get<std::string>();
    content_ = spec.at("content").get<std::string>();
  } else if (type == "ByteFallback") {
    byte_fallback_ = true;
  } else if (type == "Strip") {
    strip_ = spec.at("content").get<std::string>();
    strip_count_ = spec.at("start").get<size_t>();
    CMOE_CHECK(spec.at("stop") == 0, "{}.stop: {} is not supported; expected 0", where, spec.at("stop").dump());
  } else if (type != "Fuse") {
    fail(
        "{}.type: decoder '{}' is not supported; expected ByteLevel, Metaspace, or a Sequence of Replace, ByteFallback, Fuse, "
        "Strip",
        where, type);
  }
}

Decoder::Piece Decoder::piece(std::string_view token, bool first) const {
  if (byte_level_) {
    auto bytes = find_token_bytes(token);
    return {bytes ? std::move(*bytes) : std::string(token), false};
  }
  if (byte_fallback_) {
    if (const auto byte = find_fallback_byte(token)) return {std::string{*byte}, true};
  }
  std::string text =
      pattern_.empty() ? std::string(token) : replace_all(token, pattern_, first && drop_in_first_ ? "" : content_);
  if (first && !strip_.empty()) {
    size_t begin = 0;
    for (size_t i = 0; i < strip_count_ && text.compare(begin, strip_.size(), strip_) == 0; ++i) begin += strip_.size();
    text.erase(0, begin);
  }
  return {std::move(text), false};
}

std::string Decoder::decode(const std::vector<std::string_view>& tokens) const {
  std::string text;
  std::string run;  // of fallback bytes
  const auto end_run = [&] {
    if (find_invalid_utf8(run) == std::string_view::npos) {
      text += run;
    } else {
      for (size_t i = 0; i < run.size(); ++i) append_utf8(text, 0xfffd);
    }
    run.clear();
  };
  for (size_t i = 0; i < tokens.size(); ++i) {
    const Piece part = piece(tokens[i], i == 0);
    if (part.byte) {
      run += part.bytes;
    } else {
      end_run();
      text += part.bytes;
    }
  }
  end_run();
  return byte_level_ ? replace_invalid_utf8(text) : text;
}

}  // namespace cmoe

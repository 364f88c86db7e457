#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace cmoe {

/// From spellings of tokens back to text: ByteLevel, Metaspace, or a Sequence of Replace, ByteFallback, Fuse and Strip.
class Decoder {
 public:
  /// The bytes that one token adds to the text.
  struct Piece {
    std::string bytes;
    bool byte = false;  // a <0xXX> of byte fallback
  };

  Decoder() = default;

  /// @param spec the `decoder` of a tokenizer.json. Throws Error naming `where` and the field it refuses.
  Decoder(const nlohmann::json& spec, const std::string& where);

  /// @param first the token begins the text; what the normalizer or pre-tokenizer put before it is taken off.
  Piece piece(std::string_view token, bool first) const;

  /// The whole text, valid UTF-8: broken bytes become U+FFFD (with byte fallback one for every byte of a broken run).
  std::string decode(const std::vector<std::string_view>& tokens) const;

 private:
  void add(const nlohmann::json& spec, const std::string& where);

  bool byte_level_ = false;
  bool byte_fallback_ = false;
  bool drop_in_first_ = false;  // Metaspace: no space for a replacement in the first token
  std::string pattern_;         // replaced by content_
  std::string content_;
  std::string strip_;  // taken off the start up to strip_count_ times
  size_t strip_count_ = 0;
};

}  // namespace cmoe

#pragma once

#include <deque>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace cmoe {

/// Strings that must outlive the words that point into them; a deque never moves its elements.
using TextArena = std::deque<std::string>;

/// Cuts a text into the words inside which BPE merges. Steps: ByteLevel, Split, Digits, Metaspace, or a Sequence of these.
class PreTokenizer {
 public:
  /// One step: cuts a piece, in order, into `words` (none empty), which point into the piece or into `arena`.
  class Step {
   public:
    virtual ~Step() = default;
    /// @param at_start the piece begins the whole text.
    virtual void split(std::string_view piece, bool at_start, TextArena& arena, std::vector<std::string_view>& words) const = 0;
  };

  PreTokenizer() = default;

  /// @param spec the `pre_tokenizer` of a tokenizer.json, null for none. Throws Error naming `where` and the field it refuses.
  PreTokenizer(const nlohmann::json& spec, const std::string& where);

  /// The vocabulary is written in the byte-level alphabet; words are raw bytes.
  bool byte_level() const { return byte_level_; }
  bool empty() const { return steps_.empty(); }

  /// Words of `text` (valid UTF-8, which must stay alive with `arena` as long as the words are used).
  std::vector<std::string_view> split(std::string_view text, bool at_start, TextArena& arena) const;

 private:
  void add(const nlohmann::json& spec, const std::string& where);

  std::vector<std::shared_ptr<const Step>> steps_;
  bool byte_level_ = false;
};

}  // namespace cmoe

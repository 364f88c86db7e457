#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cmoe {

/// A token that is found in the text before anything is split: an end mark, a chat mark, a run of spaces.
struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;      // skipped when decoding without special tokens
  bool normalized = false;   // looked for after normalisation, else in the text as it came
  bool single_word = false;  // only between non-word characters
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // takes the white space behind it along
};

/// Finds added tokens: leftmost first, among those the longest.
class AddedTokenMatcher {
 public:
  /// A part of a text: an added token, or (id -1) text between them. Bytes [begin, end).
  struct Part {
    int32_t id;
    size_t begin;
    size_t end;
  };

  AddedTokenMatcher() : nodes_(1) {}

  /// Looks for token.content, or for `spelling` where normalisation changes it.
  void add(const AddedToken& token, std::string_view spelling);

  bool empty() const { return tokens_.empty(); }

  /// Parts of `text` in order. With `parse_special` false, special tokens are text like any other.
  std::vector<Part> split(std::string_view text, bool parse_special) const;

 private:
  struct Node {
    std::vector<std::pair<char, int32_t>> next;  // few children each: a search is cheap
    int32_t token = -1;
  };
  int32_t find_child(int32_t node, char c) const;

  std::vector<Node> nodes_;
  std::vector<AddedToken> tokens_;
  bool starts_[256] = {};  // bytes with which a token begins
};

}  // namespace cmoe

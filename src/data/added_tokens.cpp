#include "data/added_tokens.h"

#include <algorithm>

#include "data/utf8.h"

namespace cmoe {
namespace {

/// Start of the character that ends at `end` (> 0).
size_t previous_character(std::string_view text, size_t end) {
  size_t begin = end - 1;
  while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xc0) == 0x80) --begin;
  return begin;
}

bool word_before(std::string_view text, size_t position) {
  if (position == 0) return false;
  size_t begin = previous_character(text, position);
  return is_word_character(next_code_point(text, begin));
}

bool word_at(std::string_view text, size_t position) {
  return position < text.size() && is_word_character(next_code_point(text, position));
}

size_t skip_space_before(std::string_view text, size_t position, size_t limit) {
  while (position > limit) {
    const size_t begin = previous_character(text, position);
    size_t cursor = begin;
    if (!is_white_space(next_code_point(text, cursor))) break;
    position = begin;
  }
  return std::max(position, limit);
}

size_t skip_space_after(std::string_view text, size_t position) {
  while (position < text.size()) {
    size_t cursor = position;
    if (!is_white_space(next_code_point(text, cursor))) break;
    position = cursor;
  }
  return position;
}

}  // namespace

int32_t AddedTokenMatcher::find_child(int32_t node, char c) const {
  for (const auto& [key, child] : nodes_[static_cast<size_t>(node)].next) {
    if (key == c) return child;
  }
  return -1;
}

void AddedTokenMatcher::add(const AddedToken& token, std::string_view spelling) {
  if (spelling.empty()) return;
  int32_t node = 0;
  for (char c : spelling) {
    int32_t child = find_child(node, c);
    if (child < 0) {
      child = static_cast<int32_t>(nodes_.size());
      nodes_[static_cast<size_t>(node)].next.emplace_back(c, child);
      nodes_.emplace_back();
    }
    node = child;
  }
  nodes_[static_cast<size_t>(node)].token = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
  starts_[static_cast<uint8_t>(spelling[0])] = true;
}

std::vector<AddedTokenMatcher::Part> AddedTokenMatcher::split(std::string_view text, bool parse_special) const {
  std::vector<Part> parts;
  size_t done = 0;  // text before this is in `parts`
  size_t position = 0;
  while (!tokens_.empty() && position < text.size()) {
    if (!starts_[static_cast<uint8_t>(text[position])]) {
      ++position;
      continue;
    }
    int32_t found = -1;
    size_t end = position;
    int32_t node = 0;
    for (size_t i = position; i < text.size(); ++i) {
      node = find_child(node, text[i]);
      if (node < 0) break;
      if (nodes_[static_cast<size_t>(node)].token >= 0) {
        found = nodes_[static_cast<size_t>(node)].token;
        end = i + 1;
      }
    }
    if (found < 0) {
      ++position;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<size_t>(found)];
    size_t begin = position;
    position = end;  // a match that is turned down hides what lies inside it, as in the `tokenizers` library
    if (token.special && !parse_special) continue;
    if (token.single_word && (word_before(text, begin) || word_at(text, end))) continue;
    if (token.lstrip) begin = skip_space_before(text, begin, done);
    if (token.rstrip) end = skip_space_after(text, end);
    if (begin > done) parts.push_back({-1, done, begin});
    // The search goes on behind the match, not behind the space it took along: a token made of spaces is found there again.
    // That too is what `tokenizers` does.
    parts.push_back({token.id, begin, end});
    done = end;
  }
  if (done < text.size()) parts.push_back({-1, done, text.size()});
  return parts;
}

}  // namespace cmoe

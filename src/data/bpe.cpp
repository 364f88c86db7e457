#include "data/bpe.h"

#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <queue>

#include "base/error.h"
#include "data/byte_level.h"
#include "data/utf8.h"

namespace cmoe {
namespace {

constexpr int32_t kNoRank = std::numeric_limits<int32_t>::max();
/// Above this many symbols the heap's O(n log n) beats scanning the ranks.
constexpr size_t kShortWord = 48;
constexpr int64_t kMaxVocab = 1 << 24;
constexpr std::string_view kMetaspace = "\xe2\x96\x81";  // '▁'

uint64_t mix(uint64_t x) {
  x *= 0x9e3779b97f4a7c15ull;
  return x ^ (x >> 29);
}

uint64_t hash_of(std::string_view word) {
  uint64_t hash = word.size();
  size_t i = 0;
  for (; i + 8 <= word.size(); i += 8) {
    uint64_t chunk;
    std::memcpy(&chunk, word.data() + i, 8);
    hash = mix(hash ^ chunk);
  }
  uint64_t rest = 0;
  for (; i < word.size(); ++i) rest = rest << 8 | static_cast<uint8_t>(word[i]);
  return mix(hash ^ rest);
}

bool has_inner_metaspace(std::string_view token) {
  size_t position = 0;
  while (token.substr(position).starts_with(kMetaspace)) position += kMetaspace.size();
  return token.find(kMetaspace, position) != std::string_view::npos;
}

}  // namespace

Bpe::Bpe(const nlohmann::json& spec, bool byte_level, const std::string& where) : byte_level_(byte_level) {
  const std::string type = spec.value("type", "BPE");
  CMOE_CHECK(type == "BPE", "{}.type: model '{}' is not supported; expected BPE", where, type);
  for (const char* field : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const bool set = spec.contains(field) && !spec[field].is_null() && spec[field] != "";
    CMOE_CHECK(!set, "{}.{}: {} is not supported; expected null", where, field, spec.value(field, nlohmann::json()).dump());
  }
  if (spec.contains("dropout") && !spec["dropout"].is_null()) {
    CMOE_CHECK(spec["dropout"] == 0.0, "{}.dropout: {} is not supported; expected null", where, spec["dropout"].dump());
  }
  byte_fallback_ = spec.value("byte_fallback", false);
  fuse_unknown_ = spec.value("fuse_unk", false);
  ignore_merges_ = spec.value("ignore_merges", false);
  read_vocab(spec.at("vocab"), byte_level, where + ".vocab");
  read_merges(spec.at("merges"), where + ".merges");
  if (spec.contains("unk_token") && !spec["unk_token"].is_null()) {
    const auto token = spec["unk_token"].get<std::string>();
    unknown_ = find(token);
    CMOE_CHECK(unknown_ >= 0 || token.empty(), "{}.unk_token: '{}' is not in the vocabulary", where, token);
  }
}

void Bpe::read_vocab(const nlohmann::json& vocab, bool byte_level, const std::string& where) {
  CMOE_CHECK(vocab.is_object(), "{}: {}; expected an object of tokens and ids", where, vocab.type_name());
  int64_t largest = -1;
  for (const auto& [token, value] : vocab.items()) {
    const auto id = value.get<int64_t>();
    CMOE_CHECK(id >= 0 && id < kMaxVocab, "{}['{}']: id {} is out of range; expected 0 to {}", where, token, id, kMaxVocab - 1);
    largest = std::max(largest, id);
  }
  tokens_.resize(static_cast<size_t>(largest + 1));
  ids_.reserve(vocab.size());
  for (const auto& [token, value] : vocab.items()) {
    const auto id = value.get<int32_t>();
    std::string& slot = tokens_[static_cast<size_t>(id)];
    CMOE_CHECK(slot.empty(), "{}: tokens '{}' and '{}' have the same id {}", where, slot, token, id);
    slot = token;
    if (!token.empty()) ids_.emplace(slot, id);
    if (words_start_with_metaspace_ && has_inner_metaspace(token)) words_start_with_metaspace_ = false;
    if (byte_level && ignore_merges_) {
      if (auto bytes = find_token_bytes(token)) word_ids_.emplace(std::move(*bytes), id);
    }
  }
  for (int b = 0; b < 256; ++b) {
    std::string spelling = fmt::format("<0x{:02X}>", b);
    if (byte_level) {
      spelling.clear();
      append_utf8(spelling, byte_to_character(static_cast<uint8_t>(b)));
    }
    byte_ids_[b] = find(spelling);
  }
}

void Bpe::read_merges(const nlohmann::json& merges, const std::string& where) {
  merges_.assign(std::bit_ceil(merges.size() * 2 + 1), Merge{0, -1, 0});
  int32_t rank = 0;
  std::string joined;
  for (const auto& merge : merges) {
    std::string left, right;
    if (merge.is_array()) {
      CMOE_CHECK(merge.size() == 2, "{}[{}]: expected two tokens; found {}", where, rank, merge.dump());
      left = merge[0].get<std::string>();
      right = merge[1].get<std::string>();
    } else {
      const auto& text = merge.get_ref<const std::string&>();
      const size_t space = text.find(' ');
      CMOE_CHECK(space != std::string::npos, "{}[{}]: expected two tokens with a space between; found '{}'", where, rank, text);
      left = text.substr(0, space);
      right = text.substr(space + 1);
    }
    joined = left + right;
    const int32_t ids[] = {find(left), find(right), find(joined)};
    const std::string* names[] = {&left, &right, &joined};
    for (int i = 0; i < 3; ++i) {
      CMOE_CHECK(ids[i] >= 0, "{}[{}]: token '{}' is not in the vocabulary", where, rank, *names[i]);
    }
    const uint64_t pair = static_cast<uint64_t>(ids[0]) << 32 | static_cast<uint32_t>(ids[1]);
    size_t slot = mix(pair) & (merges_.size() - 1);
    while (merges_[slot].rank >= 0 && merges_[slot].pair != pair) slot = (slot + 1) & (merges_.size() - 1);
    merges_[slot] = {pair, rank++, ids[2]};
  }
}

int32_t Bpe::find(std::string_view token) const {
  const auto it = ids_.find(token);
  return it == ids_.end() ? -1 : it->second;
}

const Bpe::Merge* Bpe::find_merge(int32_t left, int32_t right) const {
  const uint64_t pair = static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  for (size_t slot = mix(pair) & (merges_.size() - 1);; slot = (slot + 1) & (merges_.size() - 1)) {
    if (merges_[slot].rank < 0) return nullptr;
    if (merges_[slot].pair == pair) return &merges_[slot];
  }
}

Bpe::Memo::Memo(size_t text_bytes) : slots_(std::min<size_t>(std::bit_ceil(text_bytes / 8 + 8), 1 << 14)) {}

void Bpe::encode(const std::vector<std::string_view>& words, Memo& memo, std::vector<int32_t>& ids) const {
  for (std::string_view word : words) {
    Memo::Seen& slot = memo.slots_[hash_of(word) & (memo.slots_.size() - 1)];
    const size_t begin = ids.size();
    if (slot.word == word) {
      ids.resize(begin + slot.count);
      std::memmove(ids.data() + begin, ids.data() + slot.begin, slot.count * sizeof(int32_t));
    } else {
      encode_word(word, ids);
      slot = {word, begin, ids.size() - begin};
    }
  }
}

void Bpe::encode_word(std::string_view word, std::vector<int32_t>& ids) const {
  if (ignore_merges_) {
    int32_t id = -1;
    if (byte_level_) {
      const auto it = word_ids_.find(std::string(word));
      if (it != word_ids_.end()) id = it->second;
    } else {
      id = find(word);
    }
    if (id >= 0) {
      ids.push_back(id);
      return;
    }
  }
  thread_local std::vector<int32_t> symbols;
  symbols.clear();
  start_symbols(word, symbols);
  if (symbols.size() > 1) symbols.size() <= kShortWord ? merge_short(symbols) : merge_long(symbols);
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

/// One symbol a byte or a character. What the vocabulary lacks becomes byte tokens, else the unknown token, else nothing: so
/// does the `tokenizers` library.
void Bpe::start_symbols(std::string_view word, std::vector<int32_t>& symbols) const {
  bool after_unknown = false;
  const auto add_unknown = [&] {
    if (unknown_ >= 0 && !(after_unknown && fuse_unknown_)) symbols.push_back(unknown_);
    after_unknown = true;
  };
  if (byte_level_) {
    for (char b : word) {
      const int32_t id = byte_ids_[static_cast<uint8_t>(b)];
      if (id < 0) {
        add_unknown();
      } else {
        symbols.push_back(id);
        after_unknown = false;
      }
    }
    return;
  }
  for (size_t position = 0; position < word.size();) {
    const size_t begin = position;
    next_code_point(word, position);
    const std::string_view character = word.substr(begin, position - begin);
    const int32_t id = find(character);
    if (id >= 0) {
      symbols.push_back(id);
      after_unknown = false;
      continue;
    }
    bool all_bytes = byte_fallback_;
    for (char b : character) all_bytes = all_bytes && byte_ids_[static_cast<uint8_t>(b)] >= 0;
    if (all_bytes) {
      for (char b : character) symbols.push_back(byte_ids_[static_cast<uint8_t>(b)]);
      after_unknown = false;
    } else {
      add_unknown();
    }
  }
}

/// Scans for the smallest rank each round: O(n^2), fastest for words.
void Bpe::merge_short(std::vector<int32_t>& symbols) const {
  int32_t ranks[kShortWord];
  int32_t results[kShortWord];
  size_t count = symbols.size();
  const auto look_up = [&](size_t i) {
    const Merge* merge = i + 1 < count ? find_merge(symbols[i], symbols[i + 1]) : nullptr;
    ranks[i] = merge ? merge->rank : kNoRank;
    results[i] = merge ? merge->result : -1;
  };
  for (size_t i = 0; i < count; ++i) look_up(i);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i < count; ++i) {
      if (ranks[i] < ranks[best]) best = i;
    }
    if (ranks[best] == kNoRank) break;
    symbols[best] = results[best];
    for (size_t i = best + 1; i + 1 < count; ++i) {
      symbols[i] = symbols[i + 1];
      ranks[i] = ranks[i + 1];
      results[i] = results[i + 1];
    }
    --count;
    look_up(best);
    if (best > 0) look_up(best - 1);
  }
  symbols.resize(count);
}

/// The same merges in the same order with a heap over a linked list: O(n log n).
void Bpe::merge_long(std::vector<int32_t>& symbols) const {
  struct Candidate {
    int32_t rank;
    int32_t left;  // position of the left symbol
    int32_t right;
    int32_t result;
    uint64_t pair;  // what stood there when the candidate was made
    bool operator<(const Candidate& other) const { return rank != other.rank ? rank > other.rank : left > other.left; }
  };
  const auto count = static_cast<int32_t>(symbols.size());
  std::vector<int32_t> next(symbols.size()), previous(symbols.size());
  for (int32_t i = 0; i < count; ++i) {
    next[static_cast<size_t>(i)] = i + 1 < count ? i + 1 : -1;
    previous[static_cast<size_t>(i)] = i - 1;
  }
  std::priority_queue<Candidate> heap;
  const auto at = [&](int32_t i) -> int32_t& { return symbols[static_cast<size_t>(i)]; };
  const auto push = [&](int32_t left) {
    const int32_t right = left < 0 ? -1 : next[static_cast<size_t>(left)];
    if (right < 0) return;
    if (const Merge* merge = find_merge(at(left), at(right))) heap.push({merge->rank, left, right, merge->result, merge->pair});
  };
  for (int32_t i = 0; i < count; ++i) push(i);
  while (!heap.empty()) {
    const Candidate top = heap.top();
    heap.pop();
    // Stale when either symbol was merged since (a merged-away symbol is -1).
    if (at(top.left) < 0 || next[static_cast<size_t>(top.left)] != top.right) continue;
    if ((static_cast<uint64_t>(at(top.left)) << 32 | static_cast<uint32_t>(at(top.right))) != top.pair) continue;
    at(top.left) = top.result;
    at(top.right) = -1;
    const int32_t after = next[static_cast<size_t>(top.right)];
    next[static_cast<size_t>(top.left)] = after;
    if (after >= 0) previous[static_cast<size_t>(after)] = top.left;
    push(previous[static_cast<size_t>(top.left)]);
    push(top.left);
  }
  std::erase(symbols, -1);
}

}  // namespace cmoe

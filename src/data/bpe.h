#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace cmoe {

/// The `BPE` model of a tokenizer.json: merges the pair of the smallest rank, leftmost first, until no pair is known.
class Bpe {
 public:
  /// Words met before and where their ids lie in the output: words repeat, and this saves most merging. One text's own, so
  /// that threads share nothing; the words must stay alive as long as it.
  class Memo {
   public:
    explicit Memo(size_t text_bytes);

   private:
    friend class Bpe;
    struct Seen {
      std::string_view word;
      size_t begin = 0;
      size_t count = 0;
    };
    std::vector<Seen> slots_;
  };

  /// @param spec        the `model` object: vocab, merges, unk_token, byte_fallback, fuse_unk, ignore_merges.
  /// @param byte_level  tokens are spelled in the byte-level alphabet and words are raw bytes; else words are characters.
  /// Throws Error naming `where` and the field it refuses or finds wrong.
  Bpe(const nlohmann::json& spec, bool byte_level, const std::string& where);

  Bpe(const Bpe&) = delete;  // ids_ points into tokens_
  Bpe& operator=(const Bpe&) = delete;

  /// Appends the ids of the words, in order. `memo` goes with `ids`: it is used with no other vector.
  void encode(const std::vector<std::string_view>& words, Memo& memo, std::vector<int32_t>& ids) const;

  /// Spelling of every id of the vocabulary; empty where no token has the id.
  const std::vector<std::string>& tokens() const { return tokens_; }
  /// Id of a spelling, or -1.
  int32_t find(std::string_view token) const;
  bool byte_fallback() const { return byte_fallback_; }

  /// No token has a '▁' behind another character, so that a text may be cut before a run of '▁' and merged piece by piece.
  bool words_start_with_metaspace() const { return words_start_with_metaspace_; }

 private:
  struct Merge {
    uint64_t pair;  // left id << 32 | right id
    int32_t rank;
    int32_t result;
  };
  void read_vocab(const nlohmann::json& vocab, bool byte_level, const std::string& where);
  void read_merges(const nlohmann::json& merges, const std::string& where);
  const Merge* find_merge(int32_t left, int32_t right) const;
  void encode_word(std::string_view word, std::vector<int32_t>& ids) const;
  void start_symbols(std::string_view word, std::vector<int32_t>& symbols) const;
  void merge_short(std::vector<int32_t>& symbols) const;
  void merge_long(std::vector<int32_t>& symbols) const;

  std::vector<std::string> tokens_;
  std::unordered_map<std::string_view, int32_t> ids_;  // keys point into tokens_
  std::unordered_map<std::string, int32_t> word_ids_;  // by raw bytes; filled only for ignore_merges in byte-level form
  std::vector<Merge> merges_;                          // open addressing, a power of two
  int32_t byte_ids_[256];                              // of single bytes (byte level) or of <0xXX> (byte fallback); -1: none
  int32_t unknown_ = -1;
  bool byte_level_;
  bool byte_fallback_ = false;
  bool fuse_unknown_ = false;
  bool ignore_merges_ = false;
  bool words_start_with_metaspace_ = true;
};

}  // namespace cmoe

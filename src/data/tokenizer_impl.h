#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "data/added_tokens.h"
#include "data/bpe.h"
#include "data/decoder.h"
#include "data/normalizer.h"
#include "data/pretokenizer.h"
#include "data/tokenizer.h"

namespace cmoe {

/// The stages of a tokenizer; tokenizer_json.cpp fills it.
struct Tokenizer::Impl {
  AddedTokenMatcher raw_tokens;  // looked for in the text as it comes
  Normalizer normalizer;
  AddedTokenMatcher normalized_tokens;  // looked for after the normalizer
  PreTokenizer pre_tokenizer;
  std::unique_ptr<Bpe> model;
  bool cut_at_metaspace = false;  // words end where a run of metaspace begins (no pre-tokenizer does it)
  std::vector<int32_t> prefix;    // the post-processor's ids before and behind the text
  std::vector<int32_t> suffix;
  Decoder decoder;

  std::vector<std::string> spellings;  // by id, added tokens included
  std::vector<bool> special;           // by id
  std::unordered_map<std::string, int32_t> added_ids;
  std::optional<int32_t> bos_id;
  std::optional<int32_t> eos_id;
  std::string chat_template;
  std::string json;
  std::string config_json;
};

}  // namespace cmoe

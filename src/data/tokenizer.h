#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace cmoe {

/// The tokenizer of a GGUF file: its `tokenizer.*` metadata as they stand there.
struct GgufTokenizerData {
  std::string model;                 // tokenizer.ggml.model: "gpt2" (byte-level BPE) or "llama" (SentencePiece BPE)
  std::string pre;                   // tokenizer.ggml.pre: "smollm", "llama-bpe", "qwen2", "gpt-2", "default", ...
  std::vector<std::string> tokens;   // by id
  std::vector<float> scores;         // by id; "llama" only
  std::vector<int32_t> token_types;  // by id: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte; may be empty
  std::vector<std::string> merges;   // "left right" in order of rank; "gpt2" only
  std::optional<int32_t> bos_id;
  std::optional<int32_t> eos_id;
  std::optional<int32_t> unknown_id;
  std::optional<int32_t> padding_id;
  std::optional<bool> add_bos;  // absent: what the model and pre name imply
  std::optional<bool> add_eos;
  std::optional<bool> add_space_prefix;
  std::string chat_template;
};

struct EncodeOptions {
  bool add_special = true;    // the post-processor's tokens (BOS) around the text
  bool parse_special = true;  // false: "<|im_end|>" in the text is text, as a user's input should be
};

/// Text to token ids and back, as Hugging Face's `tokenizers` does for the same tokenizer.json: byte-level BPE (GPT-2, SmolLM2,
/// Llama 3, Qwen 2) and SentencePiece-style BPE with byte fallback (Llama 2, TinyLlama). Immutable; copies share it; any number
/// of threads may use it. What a file asks for and is not done here is an Error naming the field.
class Tokenizer {
 public:
  /// Reads tokenizer.json, and from the same folder tokenizer_config.json, special_tokens_map.json and chat_template.jinja
  /// where they exist (BOS, EOS, chat template). `truncation` and `padding` are not applied, as `transformers` does not apply
  /// them.
  static Tokenizer from_json_file(const std::string& path);

  /// @param tokenizer_json, config_json  contents of the files (config_json may be empty).
  /// @param name                         of the file in error messages.
  static Tokenizer from_json(std::string_view tokenizer_json, std::string_view config_json,
                             const std::string& name = "tokenizer.json");

  /// @param name of the GGUF file in error messages.
  static Tokenizer from_gguf(const GgufTokenizerData& data, const std::string& name = "gguf");

  /// Token ids of valid UTF-8. Throws Error with the byte offset otherwise.
  std::vector<int32_t> encode(std::string_view text, EncodeOptions options = {}) const;

  /// Text of the ids, valid UTF-8 (broken bytes become U+FFFD). Ids that no token has add nothing: models may have rows for
  /// them.
  std::string decode(std::span<const int32_t> ids, bool skip_special = false) const;

  /// One more than the largest id.
  int64_t vocab_size() const;
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;
  /// True for added tokens marked special (BOS, EOS, chat marks). False for ids out of range.
  bool is_special(int32_t id) const;
  /// Spelling in the vocabulary ("Ġthe"); empty for an id that no token has.
  const std::string& token_text(int32_t id) const;
  std::optional<int32_t> find_token(std::string_view text) const;
  /// Jinja source; empty when the model has none.
  const std::string& chat_template() const;

  /// Contents of a tokenizer.json with which `transformers` gives the same ids.
  const std::string& to_json() const;
  /// Contents of the tokenizer_config.json that goes with it.
  const std::string& config_json() const;

  /// The stages; see tokenizer_impl.h.
  struct Impl;

 private:
  friend class StreamDecoder;
  static Tokenizer from_parsed(const nlohmann::json& root, std::string text, const nlohmann::json& config,
                               const std::string& name);
  explicit Tokenizer(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

/// Decodes one token after the other for a terminal. Never hands out a part of a character; the pieces joined are the text that
/// decode() gives, except that a run of fallback bytes that is not UTF-8 may give fewer U+FFFD.
class StreamDecoder {
 public:
  explicit StreamDecoder(Tokenizer tokenizer, bool skip_special = true);

  /// Text that is complete with this token; may be empty.
  std::string push(int32_t id);
  /// What is left: U+FFFD for a character that never ended. Starts anew.
  std::string finish();

 private:
  Tokenizer tokenizer_;
  bool skip_special_;
  bool first_ = true;
  std::string pending_;
};

}  // namespace cmoe

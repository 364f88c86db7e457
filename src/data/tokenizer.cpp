#include "data/tokenizer.h"

#include <algorithm>

#include "base/error.h"
#include "data/tokenizer_impl.h"
#include "data/utf8.h"

namespace cmoe {
namespace {

constexpr std::string_view kMetaspace = "\xe2\x96\x81";  // '▁'

/// Pieces that begin with a run of '▁': no merge reaches over their borders, and short pieces merge faster and repeat.
std::vector<std::string_view> cut_before_metaspace(std::string_view text) {
  std::vector<std::string_view> words;
  size_t begin = 0;
  for (size_t position = 0; position < text.size();) {
    while (text.substr(position).starts_with(kMetaspace)) position += kMetaspace.size();
    position = std::min(text.find(kMetaspace, position), text.size());
    words.push_back(text.substr(begin, position - begin));
    begin = position;
  }
  return words;
}

}  // namespace

std::vector<int32_t> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  const size_t broken = find_invalid_utf8(text);
  CMOE_CHECK(broken == std::string_view::npos, "text: byte {} is not UTF-8; expected UTF-8 text", broken);
  const Impl& impl = *impl_;
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3 + 8);
  if (options.add_special) ids = impl.prefix;

  // Words point into `text` and `arena`, which live as long as `memo`.
  TextArena arena;
  Bpe::Memo memo(text.size());
  for (const auto& raw : impl.raw_tokens.split(text, options.parse_special)) {
    if (raw.id >= 0) {
      ids.push_back(raw.id);
      continue;
    }
    std::string_view piece = text.substr(raw.begin, raw.end - raw.begin);
    if (!impl.normalizer.empty()) piece = arena.emplace_back(impl.normalizer.apply(piece));
    for (const auto& part : impl.normalized_tokens.split(piece, options.parse_special)) {
      if (part.id >= 0) {
        ids.push_back(part.id);
        continue;
      }
      const std::string_view plain = piece.substr(part.begin, part.end - part.begin);
      const bool at_start = raw.begin == 0 && part.begin == 0;
      impl.model->encode(impl.cut_at_metaspace ? cut_before_metaspace(plain) : impl.pre_tokenizer.split(plain, at_start, arena),
                         memo, ids);
    }
  }
  if (options.add_special) ids.insert(ids.end(), impl.suffix.begin(), impl.suffix.end());
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::vector<std::string_view> tokens;
  tokens.reserve(ids.size());
  for (int32_t id : ids) {
    const std::string& token = token_text(id);
    if (!token.empty() && !(skip_special && is_special(id))) tokens.push_back(token);
  }
  return impl_->decoder.decode(tokens);
}

int64_t Tokenizer::vocab_size() const { return static_cast<int64_t>(impl_->spellings.size()); }
std::optional<int32_t> Tokenizer::bos_id() const { return impl_->bos_id; }
std::optional<int32_t> Tokenizer::eos_id() const { return impl_->eos_id; }

bool Tokenizer::is_special(int32_t id) const { return id >= 0 && id < vocab_size() && impl_->special[static_cast<size_t>(id)]; }

const std::string& Tokenizer::token_text(int32_t id) const {
  static const std::string none;
  return id >= 0 && id < vocab_size() ? impl_->spellings[static_cast<size_t>(id)] : none;
}

std::optional<int32_t> Tokenizer::find_token(std::string_view text) const {
  const auto added = impl_->added_ids.find(std::string(text));
  if (added != impl_->added_ids.end()) return added->second;
  const int32_t id = impl_->model->find(text);
  return id < 0 ? std::nullopt : std::optional<int32_t>(id);
}

const std::string& Tokenizer::chat_template() const { return impl_->chat_template; }
const std::string& Tokenizer::to_json() const { return impl_->json; }
const std::string& Tokenizer::config_json() const { return impl_->config_json; }

StreamDecoder::StreamDecoder(Tokenizer tokenizer, bool skip_special)
    : tokenizer_(std::move(tokenizer)), skip_special_(skip_special) {}

std::string StreamDecoder::push(int32_t id) {
  const std::string& token = tokenizer_.token_text(id);
  if (token.empty() || (skip_special_ && tokenizer_.is_special(id))) return {};
  pending_ += tokenizer_.impl_->decoder.piece(token, first_).bytes;
  first_ = false;
  // Keep back only an unfinished character at the very end.
  size_t end = pending_.size();
  for (size_t back = 1; back <= 3 && back <= pending_.size(); ++back) {
    const size_t position = pending_.size() - back;
    if ((static_cast<uint8_t>(pending_[position]) & 0xc0) == 0x80) continue;
    const Utf8Step step = utf8_step(pending_, position);
    if (step.truncated) end = position;
    break;
  }
  std::string text = replace_invalid_utf8(std::string_view(pending_).substr(0, end));
  pending_.erase(0, end);
  return text;
}

std::string StreamDecoder::finish() {
  std::string text = replace_invalid_utf8(pending_);
  pending_.clear();
  first_ = true;
  return text;
}

}  // namespace cmoe

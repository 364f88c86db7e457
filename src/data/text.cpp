#include "data/text.h"

#include <zlib.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>

#include "base/error.h"
#include "data/json_rows.h"
#include "data/utf8.h"

namespace cmoe {
namespace {

/// The whole file; zlib hands through what is not gzip.
std::string read_bytes(const std::string& path) {
  CMOE_CHECK(!std::filesystem::is_directory(path), "{}: is a folder; expected a text file", path);
  const std::unique_ptr<gzFile_s, decltype(&gzclose)> file(gzopen(path.c_str(), "rb"), &gzclose);
  CMOE_CHECK(file != nullptr, "{}: cannot be opened; {}", path, std::strerror(errno));
  gzbuffer(file.get(), 1 << 17);
  std::string bytes;
  constexpr unsigned kChunk = 1 << 20;
  for (;;) {
    const size_t size = bytes.size();
    bytes.resize(size + kChunk);
    const int got = gzread(file.get(), bytes.data() + size, kChunk);
    bytes.resize(size + static_cast<size_t>(got > 0 ? got : 0));
    int code = Z_OK;
    const char* message = gzerror(file.get(), &code);
    CMOE_CHECK(got >= 0 && (code == Z_OK || code == Z_STREAM_END), "{}: damaged after {} unpacked bytes; {}", path,
               bytes.size(), code == Z_ERRNO ? std::strerror(errno) : message);
    if (got < static_cast<int>(kChunk)) return bytes;
  }
}

/// Calls visit(line without its newline, number from 1).
template <class Visit>
void for_each_line(std::string_view text, Visit&& visit) {
  int64_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    visit(text.substr(begin, end - begin), ++number);
    begin = end + 1;
  }
}

}  // namespace

TextFormat parse_text_format(std::string_view name) {
  if (name == "auto") return TextFormat::automatic;
  if (name == "plain") return TextFormat::plain;
  if (name == "jsonl") return TextFormat::jsonl;
  if (name == "wikitext") return TextFormat::wikitext;
  fail("text format '{}' is unknown; expected auto, plain, jsonl or wikitext", name);
}

TextFormat text_format_of(std::string_view path) {
  std::string_view name = path.substr(path.find_last_of('/') + 1);
  if (name.ends_with(".gz")) name.remove_suffix(3);
  if (name.ends_with(".jsonl") || name.ends_with(".json")) return TextFormat::jsonl;
  if (name.starts_with("wikitext") || name.starts_with("wiki.")) return TextFormat::wikitext;
  return TextFormat::plain;
}

std::string join_wikitext(std::string_view raw) {
  std::string joined;
  joined.reserve(raw.size() + raw.size() / 100);
  for_each_line(raw, [&](std::string_view line, int64_t number) {
    if (number > 1) joined += "\n\n";
    if (line.find_first_not_of(' ') == std::string_view::npos) return;
    joined += line;
    joined += '\n';
  });
  return joined;
}

std::string read_utf8_file(const std::string& path) {
  std::string bytes = read_bytes(path);
  const size_t broken = find_invalid_utf8(bytes);
  CMOE_CHECK(broken == std::string_view::npos, "{}: byte {} is not UTF-8; expected UTF-8 text", path, broken);
  return bytes;
}

std::vector<std::string> read_text(const std::string& path, TextFormat format) {
  if (format == TextFormat::automatic) format = text_format_of(path);
  std::vector<std::string> documents;
  if (format == TextFormat::jsonl) {
    for_each_json_row(path, [&](const JsonRow& row) {
      if (!row.text("text").empty()) documents.push_back(row.text("text"));
    });
  } else {
    std::string bytes = read_utf8_file(path);
    if (format == TextFormat::wikitext) bytes = join_wikitext(bytes);
    if (bytes.find_first_not_of(" \t\r\n") != std::string::npos) documents.push_back(std::move(bytes));
  }
  CMOE_CHECK(!documents.empty(), "{}: holds no text; expected at least one character that is not white space", path);
  return documents;
}

std::vector<int32_t> encode_documents(const Tokenizer& tokenizer, const std::vector<std::string>& documents) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < documents.size(); ++i) {
    const std::vector<int32_t> part = tokenizer.encode(documents[i]);
    ids.insert(ids.end(), part.begin(), part.end());
    if (i + 1 < documents.size() && tokenizer.eos_id()) ids.push_back(*tokenizer.eos_id());
  }
  return ids;
}

}  // namespace cmoe

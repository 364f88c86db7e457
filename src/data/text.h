#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"

namespace cmoe {

/// How the bytes of a text file become documents.
enum class TextFormat {
  automatic,  // by the file's name, see text_format_of()
  plain,      // the file is one document, byte for byte
  jsonl,      // JSON lines: one object a line, its "text" is a document
  wikitext,   // WikiText raw with the GPTQ join: see join_wikitext()
};

/// "auto", "plain", "jsonl" or "wikitext". @throws Error for any other name.
TextFormat parse_text_format(std::string_view name);

/// The rule of `automatic`: after taking ".gz" off, names ending in .jsonl or .json are JSON lines; names beginning with
/// "wikitext" or "wiki." are WikiText; everything else is plain.
TextFormat text_format_of(std::string_view path);

/// The rows of WikiText raw as GPTQ-style scripts see them: each line is a row; a line that is empty or only spaces is the
/// empty row, the others keep their newline; rows are joined by "\n\n".
std::string join_wikitext(std::string_view raw);

/// The bytes of a file, plain or gzip (by its content).
/// @throws Error naming the file: unreadable, damaged gzip, not UTF-8 (with the byte offset in the unpacked file).
std::string read_utf8_file(const std::string& path);

/// Documents of a file, plain or gzip (by its content), valid UTF-8, none empty.
/// @throws Error naming the file: unreadable, damaged gzip, not UTF-8 (with the byte offset in the unpacked file), a line of
/// JSON lines without a "text" (with its number), no text at all.
std::vector<std::string> read_text(const std::string& path, TextFormat format = TextFormat::automatic);

/// Token ids of documents one behind the other. Each is encoded on its own, with what the tokenizer's post-processor adds
/// (BOS); between two documents stands EOS where the tokenizer has one.
std::vector<int32_t> encode_documents(const Tokenizer& tokenizer, const std::vector<std::string>& documents);

}  // namespace cmoe

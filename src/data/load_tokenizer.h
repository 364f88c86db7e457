#pragma once

#include <string>

#include "data/tokenizer.h"

namespace cmoe {

class GgufFile;

/// The tokenizer.* metadata of a GGUF file. @throws Error naming file and key.
GgufTokenizerData read_gguf_tokenizer(const GgufFile& file);

/// The tokenizer of a model: a GGUF file, a folder with tokenizer.json, or a tokenizer.json itself.
/// @param pre  replaces the GGUF file's `tokenizer.ggml.pre` unless empty. @throws Error.
Tokenizer load_tokenizer(const std::string& model, const std::string& pre = "");

}  // namespace cmoe

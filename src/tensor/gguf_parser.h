#pragma once

#include <map>
#include <string>

#include "tensor/gguf.h"

namespace cmoe {

/// What lies before the data of a GGUF file.
struct GgufHeader {
  std::map<std::string, GgufValue> metadata;
  std::map<std::string, GgufTensor> tensors;
};

/// Parses and checks the header. @throws Error naming the file and what is wrong.
GgufHeader parse_gguf_header(const InputFile& file);

}  // namespace cmoe

#pragma once

#include <optional>
#include <string>

#include "model/config.h"
#include "tensor/gguf.h"

namespace cmoe {

/// The config of a llama-architecture GGUF file. Llama-3 RoPE scaling, which the file keeps as a table of frequency factors
/// (`rope_freqs.weight`), is recovered from the table. @throws Error naming file and key: another architecture, a missing key,
/// or what this program does not do.
ModelConfig config_from_gguf(const GgufFile& file);

/// GGUF's name of a Hugging Face tensor: "blk.3.ffn_up.weight" for "model.layers.3.mlp.up_proj.weight"; nothing if it has none.
std::optional<std::string> gguf_name(const std::string& name);
/// The other way round.
std::optional<std::string> hugging_face_name(const std::string& gguf);

/// Rows of a Q or K projection [heads * head_dim, in], from GGUF's order (a rotary pair in neighbouring rows) back to Hugging
/// Face's (a head's first half, then its second): row h D + j D/2 + i comes from h D + 2 i + j, for i < D/2, j < 2.
Tensor rows_from_interleaved(const Tensor& weight, int64_t heads);

}  // namespace cmoe

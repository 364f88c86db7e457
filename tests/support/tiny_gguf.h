#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/gguf_builder.h"
#include "support/tiny_model.h"

namespace cmoe {

/// tiny-llama as the bytes of a GGUF file, as llama.cpp's converter writes one: names of its own, query and key rows in the
/// interleaved rotary order, tokenizer in the metadata.
inline std::string tiny_llama_gguf() {
  const Checkpoint checkpoint = open_checkpoint(fixture("tiny-llama"));
  const ModelConfig& config = checkpoint.config;
  GgufBuilder gguf;
  const auto number = [&](const std::string& key, int64_t value) { gguf.key(key, static_cast<uint32_t>(value)); };
  gguf.key("general.architecture", std::string("llama"));
  number("llama.block_count", config.num_hidden_layers);
  number("llama.context_length", config.max_position_embeddings);
  number("llama.embedding_length", config.hidden_size);
  number("llama.feed_forward_length", config.intermediate_size);
  number("llama.attention.head_count", config.num_attention_heads);
  number("llama.attention.head_count_kv", config.num_key_value_heads);
  number("llama.rope.dimension_count", config.head_dim);
  number("llama.vocab_size", config.vocab_size);
  gguf.key("llama.attention.layer_norm_rms_epsilon", static_cast<float>(config.rms_norm_eps));
  gguf.key("llama.rope.freq_base", static_cast<float>(config.rope_theta));

  const nlohmann::json tokenizer = nlohmann::json::parse(read_text(fixture("tiny-llama/tokenizer.json")));
  std::vector<std::string> tokens(static_cast<size_t>(config.vocab_size)), merges;
  for (const auto& [token, id] : tokenizer["model"]["vocab"].items()) tokens[id.get<size_t>()] = token;
  std::string types;
  for (size_t id = 0; id < tokens.size(); ++id) types += GgufBuilder::bytes_of<int32_t>(id < 3 ? 3 : 1);
  for (const auto& merge : tokenizer["model"]["merges"])
    merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  gguf.key("tokenizer.ggml.model", std::string("gpt2")).key("tokenizer.ggml.pre", std::string("smollm-digits"));
  gguf.key("tokenizer.ggml.tokens", tokens).key("tokenizer.ggml.merges", merges);
  gguf.raw("tokenizer.ggml.token_type", 9,
           GgufBuilder::bytes_of<uint32_t>(5) + GgufBuilder::bytes_of<uint64_t>(tokens.size()) + types);
  number("tokenizer.ggml.bos_token_id", 1);
  number("tokenizer.ggml.eos_token_id", 2);

  const auto add = [&](const std::string& name, const Tensor& tensor) {
    std::vector<uint64_t> dims(tensor.shape().rbegin(), tensor.shape().rend());
    gguf.f32(name, dims, {tensor.span<float>().begin(), tensor.span<float>().end()});
  };
  // Row i of half 0 and row i of half 1 of a head become rows 2 i and 2 i + 1.
  const auto interleave = [&](const Tensor& tensor) {
    Tensor result(DType::f32, tensor.shape());
    const int64_t half = config.head_dim / 2;
    for (int64_t row = 0; row < tensor.dim(0); ++row) {
      const int64_t head = row / config.head_dim, at = row % config.head_dim;
      const int64_t to = head * config.head_dim + 2 * (at % half) + at / half;
      std::copy_n(tensor.row<float>(row), tensor.dim(1), result.row<float>(to));
    }
    return result;
  };
  const std::map<std::string, Tensor> tensors = read_tensors(checkpoint);
  add("token_embd.weight", tensors.at("model.embed_tokens.weight"));
  add("output_norm.weight", tensors.at("model.norm.weight"));
  for (int64_t l = 0; l < config.num_hidden_layers; ++l) {
    const std::string from = "model.layers." + std::to_string(l) + ".", to = "blk." + std::to_string(l) + ".";
    add(to + "attn_norm.weight", tensors.at(from + "input_layernorm.weight"));
    add(to + "attn_q.weight", interleave(tensors.at(from + "self_attn.q_proj.weight")));
    add(to + "attn_k.weight", interleave(tensors.at(from + "self_attn.k_proj.weight")));
    add(to + "attn_v.weight", tensors.at(from + "self_attn.v_proj.weight"));
    add(to + "attn_output.weight", tensors.at(from + "self_attn.o_proj.weight"));
    add(to + "ffn_norm.weight", tensors.at(from + "post_attention_layernorm.weight"));
    add(to + "ffn_gate.weight", tensors.at(from + "mlp.gate_proj.weight"));
    add(to + "ffn_up.weight", tensors.at(from + "mlp.up_proj.weight"));
    add(to + "ffn_down.weight", tensors.at(from + "mlp.down_proj.weight"));
  }
  return gguf.file();
}

}  // namespace cmoe

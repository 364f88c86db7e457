#include "model/gguf_model.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>
#include <utility>

#include "base/error.h"

namespace cmoe {
namespace {

// Within a layer, and outside.
constexpr std::pair<const char*, const char*> kLayerNames[] = {
    {"input_layernorm", "attn_norm"}, {"self_attn.q_proj", "attn_q"},      {"self_attn.k_proj", "attn_k"},
    {"self_attn.v_proj", "attn_v"},   {"self_attn.o_proj", "attn_output"}, {"post_attention_layernorm", "ffn_norm"},
    {"mlp.gate_proj", "ffn_gate"},    {"mlp.up_proj", "ffn_up"},           {"mlp.down_proj", "ffn_down"}};
constexpr std::pair<const char*, const char*> kModelNames[] = {
    {"model.embed_tokens", "token_embd"}, {"model.norm", "output_norm"}, {"lm_head", "output"}};

// "prefix<number>.rest.weight" -> {number, rest}; nothing when it does not read so.
std::optional<std::pair<std::string, std::string>> split_layer(const std::string& name, const std::string& prefix) {
  if (!name.starts_with(prefix) || !name.ends_with(".weight")) return std::nullopt;
  const size_t dot = name.find('.', prefix.size());
  const size_t end = name.size() - 7;
  if (dot == prefix.size() || dot >= end) return std::nullopt;
  const std::string number = name.substr(prefix.size(), dot - prefix.size());
  if (number.find_first_not_of("0123456789") != std::string::npos) return std::nullopt;
  return std::pair(number, name.substr(dot + 1, end - dot - 1));
}

int64_t id_in_vocabulary(const GgufFile& file, const std::string& key, int64_t id, int64_t vocab_size) {
  CMOE_CHECK(id >= 0 && id < vocab_size, "{}: metadata '{}' is {}; expected a token id in [0, {})", file.name(), key, id,
             vocab_size);
  return id;
}

void refuse_unsupported(const GgufFile& file) {
  const std::string architecture = file.string("general.architecture");
  CMOE_CHECK(architecture == "llama", "{}: metadata 'general.architecture' is '{}'; expected 'llama'", file.name(),
             architecture);
  for (const char* key : {"split.count", "llama.expert_count", "llama.attention.sliding_window"}) {
    const int64_t value = file.find_integer(key).value_or(0);
    CMOE_CHECK(value <= (key == std::string("split.count") ? 1 : 0), "{}: metadata '{}' is {}, which this program does not do",
               file.name(), key, value);
  }
}

void parse_heads(const GgufFile& file, ModelConfig& config) {
  config.num_attention_heads = file.integer("llama.attention.head_count");
  config.num_key_value_heads = file.find_integer("llama.attention.head_count_kv").value_or(config.num_attention_heads);
  CMOE_CHECK(config.num_attention_heads > 0, "{}: metadata 'llama.attention.head_count' is {}; expected at least 1",
             file.name(), config.num_attention_heads);
  config.head_dim = file.find_integer("llama.attention.key_length").value_or(config.hidden_size / config.num_attention_heads);
  for (const char* key : {"llama.attention.value_length", "llama.rope.dimension_count"}) {
    const int64_t value = file.find_integer(key).value_or(config.head_dim);
    CMOE_CHECK(value == config.head_dim, "{}: metadata '{}' is {}; expected the size of a head, {}", file.name(), key, value,
               config.head_dim);
  }
}

// Llama 3 scales RoPE frequencies by factors that depend on the wavelength; the file keeps the factors:
//   f_i = 1 for wavelengths below original / high, s above original / low, and 1 / ((1 - t) / s + t) between.
// The released models all use low 1, high 4, original 8192; s is the factor of the longest wavelength.
void recover_llama3_scaling(const GgufFile& file, ModelConfig& config) {
  const std::string tensor = "rope_freqs.weight";
  if (!file.contains(tensor)) return;
  const int64_t half = config.head_dim / 2;
  const Shape& shape = file.tensor(tensor).shape;
  CMOE_CHECK(shape == Shape{half}, "{}: tensor '{}' has shape {}, expected [{}] (head_dim / 2)", file.name(), tensor,
             to_string(shape), half);
  const Tensor table = file.read(tensor, DType::f32);
  const float* factors = table.data<float>();
  ModelConfig::RopeScaling s{.type = "llama3", .factor = factors[half - 1]};
  const auto original = static_cast<double>(s.original_max_position_embeddings);
  for (int64_t i = 0; i < half; ++i) {
    const double inverse = std::pow(config.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(config.head_dim));
    const double wavelength = 2 * std::numbers::pi / inverse;
    double expected = 1;
    if (wavelength > original / s.low_freq_factor) {
      expected = s.factor;
    } else if (wavelength >= original / s.high_freq_factor) {
      const double t = (original / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
      expected = 1 / ((1 - t) / s.factor + t);
    }
    CMOE_CHECK(
        std::abs(factors[i] - expected) <= 1e-3 * expected,
        "{}: tensor '{}' holds RoPE factors this program does not know: [{}] is {}, expected {} of Llama 3's scaling by {}",
        file.name(), tensor, i, factors[i], expected, s.factor);
  }
  if (s.factor > 1) config.rope_scaling = s;
}

void parse_rope(const GgufFile& file, ModelConfig& config) {
  config.rope_theta = file.find_number("llama.rope.freq_base").value_or(10000.0);
  const std::string type = file.find_string("llama.rope.scaling.type").value_or("none");
  CMOE_CHECK(type == "none" || type == "linear",
             "{}: metadata 'llama.rope.scaling.type' is '{}', which this program does not do", file.name(), type);
  if (type == "linear") config.rope_scaling = {.type = "linear", .factor = file.number("llama.rope.scaling.factor")};
}

}  // namespace

ModelConfig config_from_gguf(const GgufFile& file) {
  refuse_unsupported(file);
  ModelConfig config;
  config.hidden_size = file.integer("llama.embedding_length");
  config.intermediate_size = file.integer("llama.feed_forward_length");
  config.num_hidden_layers = file.integer("llama.block_count");
  config.max_position_embeddings = file.integer("llama.context_length");
  config.rms_norm_eps = static_cast<double>(static_cast<float>(file.number("llama.attention.layer_norm_rms_epsilon")));
  // The file keeps an f32; the shortest decimal that reads back as it is what the model's config said (1e-5,
  // not 9.99999975e-06).
  config.rms_norm_eps = std::stod(fmt::format("{}", static_cast<float>(config.rms_norm_eps)));
  parse_heads(file, config);
  parse_rope(file, config);
  config.vocab_size = file.find_integer("llama.vocab_size").value_or(0);
  if (config.vocab_size == 0 && file.contains("token_embd.weight"))
    config.vocab_size = file.tensor("token_embd.weight").shape.at(0);
  config.tie_word_embeddings = !file.contains("output.weight");
  if (const auto bos = file.find_integer("tokenizer.ggml.bos_token_id")) {
    config.bos_token_id = static_cast<int32_t>(id_in_vocabulary(file, "tokenizer.ggml.bos_token_id", *bos, config.vocab_size));
  }
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    if (const auto id = file.find_integer(key)) {
      const auto token = static_cast<int32_t>(id_in_vocabulary(file, key, *id, config.vocab_size));
      if (config.eos_token_ids.empty() || config.eos_token_ids[0] != token) config.eos_token_ids.push_back(token);
    }
  }
  config.check(file.name());
  recover_llama3_scaling(file, config);
  return config;
}

std::optional<std::string> gguf_name(const std::string& name) {
  for (const auto& [hf, gguf] : kModelNames) {
    if (name == std::string(hf) + ".weight") return std::string(gguf) + ".weight";
  }
  const auto layer = split_layer(name, "model.layers.");
  if (!layer) return std::nullopt;
  for (const auto& [hf, gguf] : kLayerNames) {
    if (layer->second == hf) return fmt::format("blk.{}.{}.weight", layer->first, gguf);
  }
  return std::nullopt;
}

std::optional<std::string> hugging_face_name(const std::string& name) {
  for (const auto& [hf, gguf] : kModelNames) {
    if (name == std::string(gguf) + ".weight") return std::string(hf) + ".weight";
  }
  const auto layer = split_layer(name, "blk.");
  if (!layer) return std::nullopt;
  for (const auto& [hf, gguf] : kLayerNames) {
    if (layer->second == gguf) return fmt::format("model.layers.{}.{}.weight", layer->first, hf);
  }
  return std::nullopt;
}

Tensor rows_from_interleaved(const Tensor& weight, int64_t heads) {
  const int64_t rows = weight.dim(0), head_dim = rows / heads, half = head_dim / 2;
  const auto row_bytes = static_cast<size_t>(weight.bytes() / rows);
  Tensor result(weight.dtype(), weight.shape());
  const auto* from = static_cast<const std::byte*>(weight.raw());
  auto* to = static_cast<std::byte*>(result.raw());
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t j = 0; j < 2; ++j) {
      for (int64_t i = 0; i < half; ++i) {
        std::memcpy(to + static_cast<size_t>(h * head_dim + j * half + i) * row_bytes,
                    from + static_cast<size_t>(h * head_dim + 2 * i + j) * row_bytes, row_bytes);
      }
    }
  }
  return result;
}

}  // namespace cmoe

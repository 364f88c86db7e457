#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "moe/router.h"

namespace cmoe {

/// The Mixture-of-Experts fields that carving adds. A config without them is dense.
struct MoeConfig {
  int64_t num_experts = 0;            ///< N = shared + routed, in units of moe_intermediate_size neurons
  int64_t num_shared_experts = 0;     ///< S: always on, stored as one FFN of S * moe_intermediate_size neurons
  int64_t num_experts_per_tok = 0;    ///< A: active routed experts per token; their mean with the threshold selector
  int64_t moe_intermediate_size = 0;  ///< m: neurons per expert
  Selector selector = Selector::topk;
  RouterKind router = RouterKind::linear;
  bool compensation_bias = false;      ///< mlp.compensation.bias [d] is stored
  bool expert_bias = false;            ///< mlp.experts.{e}.down_proj.bias [d] is stored
  bool router_scale = false;           ///< mlp.router.scale [R] is stored
  bool router_selection_bias = false;  ///< mlp.router.selection_bias [R] is stored

  int64_t num_routed_experts() const { return num_experts - num_shared_experts; }
};

/// A Llama-family decoder in Hugging Face's names.
struct ModelConfig {
  std::string model_type = "llama";
  int64_t hidden_size = 0;        ///< d
  int64_t intermediate_size = 0;  ///< f
  int64_t num_hidden_layers = 0;  ///< L
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-5;
  double rope_theta = 10000.0;
  /// Llama-3 frequency scaling (rope_type "llama3"), or a plain position divisor (rope_type "linear").
  struct RopeScaling {
    std::string type;  ///< "llama3" or "linear"
    double factor = 1, low_freq_factor = 1, high_freq_factor = 4;
    int64_t original_max_position_embeddings = 8192;
  };
  std::optional<RopeScaling> rope_scaling;
  bool tie_word_embeddings = false;
  std::string dtype = "float32";  ///< what config.json says of the stored weights: "float32", "float16" or "bfloat16"
  std::optional<int32_t> bos_token_id;
  std::vector<int32_t> eos_token_ids;
  std::optional<MoeConfig> moe;

  /// From the text of config.json. @throws Error naming `where` and the field that is missing, wrong, or asks for what this
  /// program does not do.
  static ModelConfig from_json(const nlohmann::json& json, const std::string& where);
  /// config.json of a model in this program's output form (dense, or carved with auto_map to the exported Python files).
  nlohmann::json to_json() const;

  /// Checks what both file formats must agree on: positive sizes, heads that divide, token ids in the vocabulary, experts that
  /// add up. @throws Error naming `where` and the field.
  void check(const std::string& where) const;
};

}  // namespace cmoe

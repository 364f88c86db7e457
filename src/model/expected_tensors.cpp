#include "model/expected_tensors.h"

#include <fmt/format.h>

namespace cmoe {
namespace {

class List {
 public:
  void add(const std::string& name, Shape shape, std::string dimensions) {
    tensors.push_back({prefix + name, std::move(shape), std::move(dimensions)});
  }

  void ffn(const std::string& name, int64_t hidden, int64_t neurons, const std::string& neurons_name) {
    add(name + ".gate_proj.weight", {neurons, hidden}, neurons_name + ", hidden_size");
    add(name + ".up_proj.weight", {neurons, hidden}, neurons_name + ", hidden_size");
    add(name + ".down_proj.weight", {hidden, neurons}, "hidden_size, " + neurons_name);
  }

  void router(const ModelConfig& config) {
    const MoeConfig& moe = *config.moe;
    const int64_t experts = moe.num_routed_experts();
    if (moe.router == RouterKind::linear) {
      add("mlp.router.weight", {experts, config.hidden_size}, "routed experts, hidden_size");
      add("mlp.router.bias", {experts}, "routed experts");
    } else {
      add("mlp.router.gate_proj.weight", {experts, config.hidden_size}, "routed experts, hidden_size");
      add("mlp.router.up_proj.weight", {experts, config.hidden_size}, "routed experts, hidden_size");
    }
    if (moe.selector == Selector::threshold) add("mlp.router.threshold", {1}, "one value");
    if (moe.router_scale) add("mlp.router.scale", {experts}, "routed experts");
    if (moe.router_selection_bias) add("mlp.router.selection_bias", {experts}, "routed experts");
  }

  void moe(const ModelConfig& config) {
    const MoeConfig& moe = *config.moe;
    const int64_t d = config.hidden_size, m = moe.moe_intermediate_size;
    if (moe.num_shared_experts > 0)
      ffn("mlp.shared_experts", d, moe.num_shared_experts * m, "num_shared_experts * moe_intermediate_size");
    if (moe.compensation_bias) add("mlp.compensation.bias", {d}, "hidden_size");
    if (moe.num_routed_experts() > 0) router(config);
    for (int64_t e = 0; e < moe.num_routed_experts(); ++e) {
      const std::string expert = fmt::format("mlp.experts.{}", e);
      ffn(expert, d, m, "moe_intermediate_size");
      if (moe.expert_bias) add(expert + ".down_proj.bias", {d}, "hidden_size");
    }
  }

  std::string prefix;
  std::vector<ExpectedTensor> tensors;
};

}  // namespace

std::vector<ExpectedTensor> expected_tensors(const ModelConfig& config) {
  const int64_t d = config.hidden_size;
  const int64_t q = config.num_attention_heads * config.head_dim, kv = config.num_key_value_heads * config.head_dim;
  List list;
  list.add("model.embed_tokens.weight", {config.vocab_size, d}, "vocab_size, hidden_size");
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    list.prefix = fmt::format("model.layers.{}.", layer);
    list.add("input_layernorm.weight", {d}, "hidden_size");
    list.add("self_attn.q_proj.weight", {q, d}, "num_attention_heads * head_dim, hidden_size");
    list.add("self_attn.k_proj.weight", {kv, d}, "num_key_value_heads * head_dim, hidden_size");
    list.add("self_attn.v_proj.weight", {kv, d}, "num_key_value_heads * head_dim, hidden_size");
    list.add("self_attn.o_proj.weight", {d, q}, "hidden_size, num_attention_heads * head_dim");
    list.add("post_attention_layernorm.weight", {d}, "hidden_size");
    if (config.moe) {
      list.moe(config);
    } else {
      list.ffn("mlp", d, config.intermediate_size, "intermediate_size");
    }
  }
  list.prefix.clear();
  list.add("model.norm.weight", {d}, "hidden_size");
  if (!config.tie_word_embeddings) list.add("lm_head.weight", {config.vocab_size, d}, "vocab_size, hidden_size");
  return list.tensors;
}

}  // namespace cmoe

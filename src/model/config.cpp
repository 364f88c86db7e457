#include "model/config.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"

namespace cmoe {
namespace {

using nlohmann::json;

constexpr int64_t kMaxExtent = int64_t{1} << 26;  // products of two such sizes and an element size stay far from 2^63
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxExperts = 4096;

/// Typed access to the fields of one JSON object; every complaint names file and field. null counts as absent, as in
/// transformers.
class Fields {
 public:
  Fields(const json& object, std::string where, std::string prefix = "")
      : object_(object), where_(std::move(where)), prefix_(std::move(prefix)) {
    CMOE_CHECK(object.is_object(), "{}: {} is not a JSON object", where_, prefix_.empty() ? "the config" : prefix_);
  }

  bool has(const char* key) const { return object_.contains(key) && !object_.at(key).is_null(); }
  const json& at(const char* key) const {
    CMOE_CHECK(has(key), "{}: field '{}' is missing", where_, prefix_ + key);
    return object_.at(key);
  }
  Fields object(const char* key) const { return Fields(at(key), where_, prefix_ + key + "."); }

  int64_t integer(const char* key) const {
    const json& value = at(key);
    CMOE_CHECK(value.is_number_integer() && (!value.is_number_unsigned() || value.get<uint64_t>() <= uint64_t{1} << 62),
               "{}: field '{}' is {}; expected an integer", where_, prefix_ + key, value.dump());
    return value.get<int64_t>();
  }
  int64_t integer(const char* key, int64_t otherwise) const { return has(key) ? integer(key) : otherwise; }
  double number(const char* key) const {
    const json& value = at(key);
    CMOE_CHECK(value.is_number(), "{}: field '{}' is {}; expected a number", where_, prefix_ + key, value.dump());
    return value.get<double>();
  }
  double number(const char* key, double otherwise) const { return has(key) ? number(key) : otherwise; }
  bool boolean(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    const json& value = at(key);
    CMOE_CHECK(value.is_boolean(), "{}: field '{}' is {}; expected true or false", where_, prefix_ + key, value.dump());
    return value.get<bool>();
  }
  std::string string(const char* key) const {
    const json& value = at(key);
    CMOE_CHECK(value.is_string(), "{}: field '{}' is {}; expected a string", where_, prefix_ + key, value.dump());
    return value.get<std::string>();
  }
  std::string string(const char* key, const char* otherwise) const { return has(key) ? string(key) : otherwise; }
  /// The position of a string in `choices`.
  size_t choice(const char* key, const char* otherwise, std::initializer_list<const char*> choices) const {
    const std::string value = string(key, otherwise);
    std::string listed;
    size_t index = 0;
    for (const char* choice : choices) {
      if (value == choice) return index;
      listed += fmt::format("{}'{}'", index++ == 0 ? "" : ", ", choice);
    }
    fail("{}: field '{}' is '{}'; expected one of {}", where_, prefix_ + key, value, listed);
  }
  [[noreturn]] void refuse(const char* key, const char* expected) const {
    fail("{}: field '{}' is {}, which this program does not do; expected {}", where_, prefix_ + key, at(key).dump(), expected);
  }

 private:
  const json& object_;
  std::string where_, prefix_;
};

// Fields of Llama's relatives that change the arithmetic. What is not listed here does not (dropout, initialisers, caches).
void refuse_unsupported(const Fields& fields, bool carved) {
  if (fields.string("hidden_act", "silu") != "silu") fields.refuse("hidden_act", "'silu'");
  for (const char* key :
       {"attention_bias", "mlp_bias", "qkv_bias", "use_qk_norm", "use_qkv_bias", "is_encoder_decoder", "add_cross_attention"}) {
    if (fields.boolean(key, false)) fields.refuse(key, "false");
  }
  for (const char* key : {"quantization_config", "sliding_window", "attn_logit_softcapping", "final_logit_softcapping",
                          "layer_types", "no_rope_layers"}) {
    if (fields.has(key)) fields.refuse(key, "null");
  }
  for (const char* key :
       {"partial_rotary_factor", "rotary_pct", "embedding_multiplier", "residual_multiplier", "logits_scaling"}) {
    if (fields.number(key, 1.0) != 1.0) fields.refuse(key, "1");
  }
  if (carved) return;
  for (const char* key : {"num_experts", "num_local_experts", "n_routed_experts"}) {
    if (fields.integer(key, 0) != 0) fields.refuse(key, "a dense model, or model_type 'cmoe'");
  }
}

// rope_theta and rope_scaling, or the two in one object (transformers 5).
void parse_rope(const Fields& config, ModelConfig& model) {
  model.rope_theta = config.number("rope_theta", 10000.0);
  const bool together = config.has("rope_parameters");
  const char* key = together ? "rope_parameters" : "rope_scaling";
  if (!config.has(key)) return;
  const Fields rope = config.object(key);
  if (together) model.rope_theta = rope.number("rope_theta", model.rope_theta);
  if (rope.number("partial_rotary_factor", 1.0) != 1.0) rope.refuse("partial_rotary_factor", "1");
  const char* type_key = rope.has("rope_type") || !rope.has("type") ? "rope_type" : "type";
  const std::string type = together ? rope.string(type_key, "default") : rope.string(type_key);
  if (type == "default") return;
  if (type != "linear" && type != "llama3") rope.refuse(type_key, "'default', 'linear' or 'llama3'");
  ModelConfig::RopeScaling scaling{.type = type, .factor = rope.number("factor")};
  if (type == "llama3") {
    scaling.low_freq_factor = rope.number("low_freq_factor");
    scaling.high_freq_factor = rope.number("high_freq_factor");
    scaling.original_max_position_embeddings = rope.integer("original_max_position_embeddings");
  }
  model.rope_scaling = scaling;
}

int32_t token_id(const json& value, const std::string& where, const char* key, int64_t vocab_size) {
  CMOE_CHECK(value.is_number_integer() && value.get<int64_t>() >= 0 && value.get<int64_t>() < vocab_size,
             "{}: field '{}' is {}; expected a token id in [0, {})", where, key, value.dump(), vocab_size);
  return value.get<int32_t>();
}

// An absent id is Llama's default; null is none.
void parse_token_ids(const json& config, const std::string& where, ModelConfig& model) {
  const json bos = config.value("bos_token_id", json(1)), eos = config.value("eos_token_id", json(2));
  if (!bos.is_null()) model.bos_token_id = token_id(bos, where, "bos_token_id", model.vocab_size);
  if (eos.is_array()) {
    for (const json& id : eos) model.eos_token_ids.push_back(token_id(id, where, "eos_token_id", model.vocab_size));
  } else if (!eos.is_null()) {
    model.eos_token_ids = {token_id(eos, where, "eos_token_id", model.vocab_size)};
  }
}

MoeConfig parse_moe(const Fields& fields) {
  MoeConfig moe;
  moe.num_experts = fields.integer("num_experts");
  moe.num_shared_experts = fields.integer("num_shared_experts");
  moe.num_experts_per_tok = fields.integer("num_experts_per_tok");
  moe.moe_intermediate_size = fields.integer("moe_intermediate_size");
  moe.router = static_cast<RouterKind>(fields.choice("router_type", "linear", {"linear", "analytical", "authors"}));
  moe.selector = static_cast<Selector>(fields.choice("router_selector", "topk", {"topk", "threshold"}));
  moe.compensation_bias = fields.boolean("compensation_bias", false);
  moe.expert_bias = fields.boolean("expert_bias", false);
  moe.router_scale = fields.boolean("router_scale", false);
  moe.router_selection_bias = fields.boolean("router_selection_bias", false);
  return moe;
}

void check_range(const std::string& where, const char* field, int64_t value, int64_t least, int64_t most) {
  CMOE_CHECK(value >= least && value <= most, "{}: field '{}' is {}; expected {} to {}", where, field, value, least, most);
}

}  // namespace

ModelConfig ModelConfig::from_json(const json& config, const std::string& where) {
  const Fields fields(config, where);
  ModelConfig model;
  model.model_type = fields.string("model_type");
  const bool carved = model.model_type == "cmoe";
  if (!carved && model.model_type != "llama" && model.model_type != "mistral")
    fields.refuse("model_type", "'llama', 'mistral' or 'cmoe'");
  refuse_unsupported(fields, carved);

  model.hidden_size = fields.integer("hidden_size");
  model.intermediate_size = fields.integer("intermediate_size");
  model.num_hidden_layers = fields.integer("num_hidden_layers");
  model.num_attention_heads = fields.integer("num_attention_heads");
  model.vocab_size = fields.integer("vocab_size");
  model.num_key_value_heads = fields.integer("num_key_value_heads", model.num_attention_heads);
  if (!fields.has("head_dim")) {
    check_range(where, "num_attention_heads", model.num_attention_heads, 1, kMaxExtent);
    CMOE_CHECK(model.hidden_size % model.num_attention_heads == 0,
               "{}: field 'hidden_size' is {}; expected a multiple of num_attention_heads ({}) where head_dim is not given",
               where, model.hidden_size, model.num_attention_heads);
  }
  model.head_dim = fields.has("head_dim") ? fields.integer("head_dim") : model.hidden_size / model.num_attention_heads;
  model.max_position_embeddings = fields.integer("max_position_embeddings", 2048);
  model.rms_norm_eps = fields.number("rms_norm_eps", 1e-6);
  model.tie_word_embeddings = fields.boolean("tie_word_embeddings", false);
  const char* dtype_key = fields.has("dtype") ? "dtype" : "torch_dtype";
  constexpr const char* dtypes[] = {"float32", "float16", "bfloat16"};
  model.dtype = dtypes[fields.choice(dtype_key, "float32", {dtypes[0], dtypes[1], dtypes[2]})];
  parse_rope(fields, model);
  if (carved) model.moe = parse_moe(fields);
  parse_token_ids(config, where, model);
  model.check(where);
  return model;
}

void ModelConfig::check(const std::string& where) const {
  check_range(where, "hidden_size", hidden_size, 1, kMaxExtent);
  check_range(where, "intermediate_size", intermediate_size, 1, kMaxExtent);
  check_range(where, "num_hidden_layers", num_hidden_layers, 1, kMaxLayers);
  check_range(where, "num_attention_heads", num_attention_heads, 1, kMaxExtent);
  check_range(where, "num_key_value_heads", num_key_value_heads, 1, num_attention_heads);
  check_range(where, "head_dim", head_dim, 2, kMaxExtent / num_attention_heads);
  check_range(where, "vocab_size", vocab_size, 1, kMaxExtent);
  check_range(where, "max_position_embeddings", max_position_embeddings, 1, kMaxExtent);
  CMOE_CHECK(head_dim % 2 == 0, "{}: field 'head_dim' is {}; expected an even number (rotary embedding turns pairs)", where,
             head_dim);
  CMOE_CHECK(num_attention_heads % num_key_value_heads == 0,
             "{}: field 'num_key_value_heads' is {}; expected a divisor of num_attention_heads ({})", where,
             num_key_value_heads, num_attention_heads);
  CMOE_CHECK(rms_norm_eps > 0 && rms_norm_eps < 1, "{}: field 'rms_norm_eps' is {}; expected a small positive number", where,
             rms_norm_eps);
  CMOE_CHECK(rope_theta > 1 && rope_theta < 1e15, "{}: field 'rope_theta' is {}; expected more than 1", where, rope_theta);
  if (rope_scaling) {
    const RopeScaling& s = *rope_scaling;
    CMOE_CHECK(s.factor >= 1 && s.low_freq_factor > 0 && s.high_freq_factor > s.low_freq_factor &&
                   s.original_max_position_embeddings > 0,
               "{}: rope scaling is out of range: factor {}, low_freq_factor {}, high_freq_factor {}, "
               "original_max_position_embeddings {}; "
               "expected factor >= 1 and 0 < low < high",
               where, s.factor, s.low_freq_factor, s.high_freq_factor, s.original_max_position_embeddings);
  }
  if (!moe) return;
  check_range(where, "num_experts", moe->num_experts, 1, kMaxExperts);
  check_range(where, "num_shared_experts", moe->num_shared_experts, 0, moe->num_experts);
  check_range(where, "num_experts_per_tok", moe->num_experts_per_tok, 0, moe->num_routed_experts());
  check_range(where, "moe_intermediate_size", moe->moe_intermediate_size, 1, intermediate_size);
  const int64_t neurons = moe->num_experts * moe->moe_intermediate_size;
  // Without routed experts the layer keeps a part of the neurons; otherwise the experts share out all of them.
  CMOE_CHECK(neurons == intermediate_size || (moe->num_routed_experts() == 0 && neurons < intermediate_size),
             "{}: {} experts of {} neurons make {}; expected intermediate_size ({})", where, moe->num_experts,
             moe->moe_intermediate_size, neurons, intermediate_size);
}

json ModelConfig::to_json() const {
  json config = {{"model_type", model_type},
                 {"architectures", {model_type == "mistral" ? "MistralForCausalLM" : "LlamaForCausalLM"}},
                 {"hidden_size", hidden_size},
                 {"intermediate_size", intermediate_size},
                 {"num_hidden_layers", num_hidden_layers},
                 {"num_attention_heads", num_attention_heads},
                 {"num_key_value_heads", num_key_value_heads},
                 {"head_dim", head_dim},
                 {"vocab_size", vocab_size},
                 {"max_position_embeddings", max_position_embeddings},
                 {"rms_norm_eps", rms_norm_eps},
                 {"rope_theta", rope_theta},
                 {"rope_scaling", nullptr},
                 {"tie_word_embeddings", tie_word_embeddings},
                 {"hidden_act", "silu"},
                 {"attention_bias", false},
                 {"mlp_bias", false},
                 {"torch_dtype", dtype},
                 {"bos_token_id", nullptr},
                 {"eos_token_id", nullptr}};
  if (model_type == "mistral") config["sliding_window"] = nullptr;  // its default in transformers is a window
  if (bos_token_id) config["bos_token_id"] = *bos_token_id;
  if (eos_token_ids.size() == 1) config["eos_token_id"] = eos_token_ids[0];
  if (eos_token_ids.size() > 1) config["eos_token_id"] = eos_token_ids;
  if (rope_scaling) {
    config["rope_scaling"] = {{"rope_type", rope_scaling->type}, {"factor", rope_scaling->factor}};
    if (rope_scaling->type == "llama3") {
      config["rope_scaling"]["low_freq_factor"] = rope_scaling->low_freq_factor;
      config["rope_scaling"]["high_freq_factor"] = rope_scaling->high_freq_factor;
      config["rope_scaling"]["original_max_position_embeddings"] = rope_scaling->original_max_position_embeddings;
    }
  }
  if (!moe) return config;
  constexpr const char* routers[] = {"linear", "analytical", "authors"};
  constexpr const char* selectors[] = {"topk", "threshold"};
  config["model_type"] = "cmoe";
  config["architectures"] = {"CmoeForCausalLM"};
  config["auto_map"] = {{"AutoConfig", "configuration_cmoe.CmoeConfig"},
                        {"AutoModelForCausalLM", "modeling_cmoe.CmoeForCausalLM"}};
  config["num_experts"] = moe->num_experts;
  config["num_shared_experts"] = moe->num_shared_experts;
  config["num_experts_per_tok"] = moe->num_experts_per_tok;
  config["moe_intermediate_size"] = moe->moe_intermediate_size;
  config["router_type"] = routers[static_cast<int>(moe->router)];
  config["router_selector"] = selectors[static_cast<int>(moe->selector)];
  config["compensation_bias"] = moe->compensation_bias;
  config["expert_bias"] = moe->expert_bias;
  config["router_scale"] = moe->router_scale;
  config["router_selection_bias"] = moe->router_selection_bias;
  return config;
}

}  // namespace cmoe

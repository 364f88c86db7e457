// Checkpoint -> Transformer: reads each tensor once, by its Hugging Face name, and hands it to the backend.

#include <cmath>
#include <numbers>

#include "base/error.h"
#include "model/transformer.h"

namespace cmoe {
namespace {

// Reads tensors below a name prefix.
class Reader {
 public:
  Reader(const Checkpoint& checkpoint, const Backend& backend, DType dtype, std::string prefix)
      : checkpoint_(checkpoint), backend_(backend), dtype_(dtype), prefix_(std::move(prefix)) {}

  Weight weight(const std::string& name, int64_t out, int64_t in) const { return weight(name, out, in, dtype_); }
  Weight weight(const std::string& name, int64_t out, int64_t in, DType dtype) const {
    return backend_.prepare(checkpoint_.tensors->read(prefix_ + name, {out, in}, dtype), dtype);
  }
  Tensor vector(const std::string& name, int64_t size) const {
    return checkpoint_.tensors->read(prefix_ + name, {size}, DType::f32);
  }

  GatedFfn ffn(const std::string& name, int64_t hidden, int64_t neurons, bool bias) const {
    GatedFfn ffn{.gate = weight(name + ".gate_proj.weight", neurons, hidden),
                 .up = weight(name + ".up_proj.weight", neurons, hidden),
                 .down = weight(name + ".down_proj.weight", hidden, neurons),
                 .down_bias = {}};
    if (bias) ffn.down_bias = vector(name + ".down_proj.bias", hidden);
    return ffn;
  }

  Router router(const ModelConfig& config) const {
    const MoeConfig& moe = *config.moe;
    const int64_t experts = moe.num_routed_experts();
    Router router{.kind = moe.router, .selector = moe.selector, .num_experts_per_tok = moe.num_experts_per_tok};
    if (moe.router == RouterKind::linear) {
      router.weight = weight("mlp.router.weight", experts, config.hidden_size, DType::f32);
      router.bias = vector("mlp.router.bias", experts);
    } else {
      router.gate_proj = weight("mlp.router.gate_proj.weight", experts, config.hidden_size, DType::f32);
      router.up_proj = weight("mlp.router.up_proj.weight", experts, config.hidden_size, DType::f32);
    }
    if (moe.selector == Selector::threshold) router.threshold = vector("mlp.router.threshold", 1).data<float>()[0];
    if (moe.router_scale) router.scale = vector("mlp.router.scale", experts);
    if (moe.router_selection_bias) router.selection_bias = vector("mlp.router.selection_bias", experts);
    return router;
  }

  MoeLayer moe(const ModelConfig& config, int64_t number, std::shared_ptr<const ExpertParallel> parallel) const {
    const MoeConfig& moe = *config.moe;
    const int64_t d = config.hidden_size, m = moe.moe_intermediate_size;
    MoeLayer layer;
    if (moe.num_shared_experts > 0) layer.shared = ffn("mlp.shared_experts", d, moe.num_shared_experts * m, false);
    if (moe.compensation_bias) layer.compensation_bias = vector("mlp.compensation.bias", d);
    layer.parallel = std::move(parallel);
    layer.experts.resize(static_cast<size_t>(moe.num_routed_experts()));
    if (moe.num_routed_experts() == 0) return layer;
    layer.router = router(config);
    for (int64_t e = 0; e < moe.num_routed_experts(); ++e) {
      if (layer.parallel->holds(number, static_cast<GlobalExpert>(e)))
        layer.experts[static_cast<size_t>(e)] = ffn(fmt::format("mlp.experts.{}", e), d, m, moe.expert_bias);
    }
    return layer;
  }

 private:
  const Checkpoint& checkpoint_;
  const Backend& backend_;
  DType dtype_;
  std::string prefix_;
};

}  // namespace

Transformer::Transformer(const Checkpoint& checkpoint, std::shared_ptr<const Backend> backend, DType dtype, LoadFfn ffn,
                         std::shared_ptr<const ExpertParallel> experts)
    : config_(checkpoint.config), backend_(std::move(backend)), dtype_(dtype) {
  const int64_t d = config_.hidden_size;
  const int64_t q_size = config_.num_attention_heads * config_.head_dim;
  const int64_t kv_size = config_.num_key_value_heads * config_.head_dim;
  const TensorSource& tensors = *checkpoint.tensors;
  if (config_.moe) {
    const int64_t routed = config_.moe->num_routed_experts();
    if (!experts) experts = ExpertParallel::alone(config_.num_hidden_layers, routed);
    CMOE_CHECK(experts->layers() == config_.num_hidden_layers && experts->placement(0).num_experts() == routed,
               "{}: experts are placed for {} layers of {} experts; expected {} layers of {}", checkpoint.path.string(),
               experts->layers(), experts->layers() > 0 ? experts->placement(0).num_experts() : 0, config_.num_hidden_layers,
               routed);
  }
  embedding_ = tensors.read("model.embed_tokens.weight", {config_.vocab_size, d}, dtype);
  for (int64_t l = 0; l < config_.num_hidden_layers; ++l) {
    const Reader read(checkpoint, *backend_, dtype, fmt::format("model.layers.{}.", l));
    DecoderLayer layer;
    layer.attention = {.norm = read.vector("input_layernorm.weight", d),
                       .q = read.weight("self_attn.q_proj.weight", q_size, d),
                       .k = read.weight("self_attn.k_proj.weight", kv_size, d),
                       .v = read.weight("self_attn.v_proj.weight", kv_size, d),
                       .o = read.weight("self_attn.o_proj.weight", d, q_size)};
    layer.ffn_norm = read.vector("post_attention_layernorm.weight", d);
    if (ffn == LoadFfn::yes) layer.ffn = read_ffn(checkpoint, *backend_, dtype, l, experts);
    layers_.push_back(std::move(layer));
  }
  final_norm_ = tensors.read("model.norm.weight", {d}, DType::f32);
  head_ = config_.tie_word_embeddings
              ? backend_->prepare(embedding_, dtype)
              : backend_->prepare(tensors.read("lm_head.weight", {config_.vocab_size, d}, dtype), dtype);
  rope_tables(config_, config_.max_position_embeddings, rope_cos_, rope_sin_);
}

std::variant<GatedFfn, MoeLayer> read_ffn(const Checkpoint& checkpoint, const Backend& backend, DType dtype, int64_t layer,
                                          std::shared_ptr<const ExpertParallel> experts) {
  const ModelConfig& config = checkpoint.config;
  const Reader read(checkpoint, backend, dtype, fmt::format("model.layers.{}.", layer));
  if (!config.moe) return read.ffn("mlp", config.hidden_size, config.intermediate_size, false);
  if (!experts) experts = ExpertParallel::alone(config.num_hidden_layers, config.moe->num_routed_experts());
  return read.moe(config, layer, std::move(experts));
}

DenseFfnTensors read_dense_ffn(const Checkpoint& checkpoint, int64_t layer, DType dtype) {
  const std::string prefix = fmt::format("model.layers.{}.mlp.", layer);
  const int64_t d = checkpoint.config.hidden_size, f = checkpoint.config.intermediate_size;
  return {.gate = checkpoint.tensors->read(prefix + "gate_proj.weight", {f, d}, dtype),
          .up = checkpoint.tensors->read(prefix + "up_proj.weight", {f, d}, dtype),
          .down = checkpoint.tensors->read(prefix + "down_proj.weight", {d, f}, dtype)};
}

int64_t Transformer::weight_bytes() const {
  int64_t bytes = embedding_.bytes() + head_.bytes();
  for (const DecoderLayer& layer : layers_) {
    const AttentionWeights& a = layer.attention;
    bytes += a.q.bytes() + a.k.bytes() + a.v.bytes() + a.o.bytes();
    if (const auto* dense = std::get_if<GatedFfn>(&layer.ffn)) {
      bytes += dense->bytes();
    } else {
      bytes += std::get<MoeLayer>(layer.ffn).bytes();
    }
  }
  return bytes;
}

void rope_tables(const ModelConfig& config, int64_t positions, Tensor& cos, Tensor& sin) {
  const int64_t half = config.head_dim / 2;
  cos = Tensor(DType::f32, {positions, half});
  sin = Tensor(DType::f32, {positions, half});
  for (int64_t i = 0; i < half; ++i) {
    // f32 as transformers computes it, so that long positions agree: inv_freq_i = theta^(-2i / head_dim)
    float frequency =
        1.0f / std::pow(static_cast<float>(config.rope_theta), static_cast<float>(2 * i) / static_cast<float>(config.head_dim));
    if (config.rope_scaling && config.rope_scaling->type == "linear")
      frequency /= static_cast<float>(config.rope_scaling->factor);
    if (config.rope_scaling && config.rope_scaling->type == "llama3") {
      const auto& s = *config.rope_scaling;
      const double original = static_cast<double>(s.original_max_position_embeddings);
      const double wavelength = 2.0 * std::numbers::pi / frequency;
      if (wavelength > original / s.low_freq_factor) {
        frequency = static_cast<float>(frequency / s.factor);
      } else if (wavelength >= original / s.high_freq_factor) {
        const double smooth = (original / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
        frequency = static_cast<float>((1 - smooth) * frequency / s.factor + smooth * frequency);
      }
    }
    for (int64_t p = 0; p < positions; ++p) {
      const float angle = static_cast<float>(p) * frequency;
      cos.row<float>(p)[i] = std::cos(angle);
      sin.row<float>(p)[i] = std::sin(angle);
    }
  }
}

}  // namespace cmoe

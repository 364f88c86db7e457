// Adapters put around a loaded model: construction, packing. Its passes are in backward.cpp.
#include "train/trained_model.h"

#include <array>
#include <cmath>
#include <cstring>

#include "base/error.h"

namespace cmoe {
namespace {

const std::set<std::string> kTargets{"q", "k", "v", "o", "gate", "up", "down"};

void copy(const Tensor& from, const Tensor& to) { std::memcpy(to.raw(), from.raw(), static_cast<size_t>(from.bytes())); }

}  // namespace

double TrainedParts::scale_of(int64_t lora_rank) const {
  return rslora ? alpha / std::sqrt(static_cast<double>(lora_rank)) : alpha / static_cast<double>(lora_rank);
}

TrainedModel::TrainedModel(const Checkpoint& checkpoint, const Transformer& base, const TrainedParts& parts, uint64_t seed)
    : base_(base), parts_(parts) {
  const ModelConfig& config = base.config();
  for (const std::string& target : parts.lora_targets)
    CMOE_CHECK(kTargets.contains(target), "lora-targets: '{}' is unknown; expected some of q, k, v, o, gate, up, down", target);
  const bool linear = config.moe && config.moe->router == RouterKind::linear;
  CMOE_CHECK(parts.router_regression == 0 || (linear && parts.router_weights),
             "router-regression: {}, expected 0 unless a linear router is trained; use --train-router on a linear router",
             parts.router_regression);
  CMOE_CHECK(!parts.router_weights || num_routed_experts() > 0,
             "train-router: {} has no routed experts, expected a carved model with a router", checkpoint.path.string());
  parts_.router_scale = parts.router_scale && num_routed_experts() > 0;
  parts_.router_bias = parts.router_bias && num_routed_experts() > 0;

  rope_back_ = base.rope_sin().clone();
  for (float& value : rope_back_.span<float>()) value = -value;
  for (int64_t l = 0; l < config.num_hidden_layers; ++l) {
    const DecoderLayer& from = base.layers()[static_cast<size_t>(l)];
    const std::string prefix = fmt::format("model.layers.{}.", l);
    Layer layer;
    layer.ffn_norm = &from.ffn_norm;
    AttentionBlock& attention = layer.attention;
    attention.norm = &from.attention.norm;
    attention.epsilon = static_cast<float>(config.rms_norm_eps);
    attention.head_dim = config.head_dim;
    attention.rope_cos = &base.rope_cos();
    attention.rope_sin = &base.rope_sin();
    attention.rope_back = &rope_back_;
    adapt(attention.q, parameters_, prefix + "self_attn.q_proj", from.attention.q, "q", parts.rank);
    adapt(attention.k, parameters_, prefix + "self_attn.k_proj", from.attention.k, "k", parts.rank);
    adapt(attention.v, parameters_, prefix + "self_attn.v_proj", from.attention.v, "v", parts.rank);
    adapt(attention.o, parameters_, prefix + "self_attn.o_proj", from.attention.o, "o", parts.rank);
    if (const auto* dense = std::get_if<GatedFfn>(&from.ffn)) {
      layer.ffn = adapted_ffn(parameters_, *dense, prefix + "mlp", parts.rank);
    } else {
      layer.ffn = adapted_moe(checkpoint, std::get<MoeLayer>(from.ffn), l);
    }
    layers_.push_back(std::move(layer));
  }
  CMOE_CHECK(layout_.size() > 0, "finetune: nothing to train; expected --lora-targets, a router scale or router weights");
  parameters_.allocate();
  expert_parameters_.allocate();

  for_each_linear([&](const LoraLinear& module, const ParameterSet& parameters) { module.initialise(parameters, seed); });
  for (int64_t l = 0; num_routed_experts() > 0 && l < num_layers(); ++l) {
    MoeBlock& block = moe(l);
    const int64_t routed = num_routed_experts();
    const std::string router = fmt::format("model.layers.{}.mlp.router.", l);
    const auto load = [&](int64_t parameter, const std::string& name) {
      copy(checkpoint.tensors->read(router + name, parameters_[parameter].shape, DType::f32), parameters_.value(parameter));
    };
    if (block.scale >= 0) {
      if (block.router.scale.size() > 0) copy(block.router.scale, parameters_.value(block.scale));
      block.router.scale = parameters_.value(block.scale);
    }
    // Both change from step to step and belong to this model alone.
    if (block.router.selection_bias.size() > 0) {
      block.router.selection_bias = block.router.selection_bias.clone();
    } else if (parts_.router_bias) {
      block.router.selection_bias = Tensor::zeros(DType::f32, {routed});
    }
    if (block.weight >= 0) {
      load(block.weight, "weight");
      load(block.bias, "bias");
      block.router.bias = parameters_.value(block.bias);
    }
    if (block.gate_proj >= 0) {
      load(block.gate_proj, "gate_proj.weight");
      load(block.up_proj, "up_proj.weight");
    }
  }
  pack();
}

int64_t TrainedModel::num_routed_experts() const { return base_.config().moe ? base_.config().moe->num_routed_experts() : 0; }

void TrainedModel::adapt(LoraLinear& linear, ParameterSet& parameters, const std::string& module, const Weight& weight,
                         const std::string& target, int64_t rank) {
  linear.base = &weight;
  linear.module = module;
  if (parts_.lora_targets.contains(target)) linear.adapt(parameters, rank, static_cast<float>(parts_.scale_of(rank)));
}

FfnBlock TrainedModel::adapted_ffn(ParameterSet& parameters, const GatedFfn& ffn, const std::string& module, int64_t rank) {
  FfnBlock block;
  adapt(block.gate, parameters, module + ".gate_proj", ffn.gate, "gate", rank);
  adapt(block.up, parameters, module + ".up_proj", ffn.up, "up", rank);
  adapt(block.down, parameters, module + ".down_proj", ffn.down, "down", rank);
  if (ffn.down_bias.size() > 0) block.down_bias = &ffn.down_bias;
  return block;
}

MoeBlock TrainedModel::adapted_moe(const Checkpoint& checkpoint, const MoeLayer& layer, int64_t number) {
  const int64_t routed = num_routed_experts(), d = base_.config().hidden_size;
  const int64_t neurons = base_.config().moe->moe_intermediate_size;
  const std::string prefix = fmt::format("model.layers.{}.mlp.", number);
  parallel_ = layer.parallel;
  MoeBlock block;
  block.parallel = layer.parallel;
  block.layer = number;
  if (layer.shared) block.shared = adapted_ffn(parameters_, *layer.shared, prefix + "shared_experts", parts_.rank);
  ParameterSet elsewhere(&layout_);  // of experts that other ranks hold: a place in the layout
  const GatedFfn absent{Weight(neurons, d, base_.dtype(), nullptr), Weight(neurons, d, base_.dtype(), nullptr),
                        Weight(d, neurons, base_.dtype(), nullptr), Tensor()};
  for (size_t e = 0; e < layer.experts.size(); ++e) {
    const size_t copies = layer.parallel->placement(number).copies(static_cast<GlobalExpert>(e)).size();
    CMOE_CHECK(copies == 1, "{}: layer {} has expert {} on {} ranks of a group; training expects each on one",
               checkpoint.path.string(), number, e, copies);
    const bool here = layer.experts[e].gate.defined();
    FfnBlock expert =
        adapted_ffn(here ? expert_parameters_ : elsewhere, here ? layer.experts[e] : absent,
                    fmt::format("{}experts.{}", prefix, e), parts_.expert_rank > 0 ? parts_.expert_rank : parts_.rank);
    block.experts.push_back(here ? std::move(expert) : FfnBlock());
  }
  block.compensation_bias = layer.compensation_bias;
  if (routed == 0) return block;
  block.router = layer.router;
  if (parts_.router_scale) block.scale = parameters_.add(prefix + "router.scale", {routed}, ParameterGroup::router_scale);
  if (!parts_.router_weights) return block;
  block.regression = static_cast<float>(parts_.router_regression);
  const auto add = [&](const char* name, Shape shape) {
    return parameters_.add(prefix + "router." + name, std::move(shape), ParameterGroup::router);
  };
  if (layer.router.kind == RouterKind::linear) {
    block.weight = add("weight", {routed, d});
    block.bias = add("bias", {routed});
  } else {
    block.gate_proj = add("gate_proj.weight", {routed, d});
    block.up_proj = add("up_proj.weight", {routed, d});
  }
  return block;
}

template <class Visit>
void TrainedModel::for_each_linear(const Visit& visit) {
  const auto visit_ffn = [&](FfnBlock& ffn, ParameterSet& parameters) {
    for (LoraLinear* linear : {&ffn.gate, &ffn.up, &ffn.down}) visit(*linear, parameters);
  };
  for (Layer& layer : layers_) {
    for (LoraLinear* linear : {&layer.attention.q, &layer.attention.k, &layer.attention.v, &layer.attention.o})
      visit(*linear, parameters_);
    if (auto* dense = std::get_if<FfnBlock>(&layer.ffn)) {
      visit_ffn(*dense, parameters_);
    } else {
      auto& block = std::get<MoeBlock>(layer.ffn);
      if (block.shared) visit_ffn(*block.shared, parameters_);
      for (FfnBlock& expert : block.experts) visit_ffn(expert, expert_parameters_);
    }
  }
}

Tensor TrainedModel::collect_values() const {
  const bool root = !parallel_ || parallel_->rank() == 0;
  Tensor all;
  if (root) all = Tensor(DType::f32, {layout_.size()});
  const auto put = [&](int64_t place, const float* values, int64_t size) {
    std::memcpy(all.data<float>() + place, values, static_cast<size_t>(size) * sizeof(float));
  };
  if (root) {
    for (const Parameter& parameter : parameters_.all())
      put(parameter.place, parameters_.values().data<float>() + parameter.offset, parameter.size);
  }
  if (!parallel_) return all;

  // Every rank's experts: what they are to all, their values to the root.
  std::vector<std::array<int64_t, 2>> mine;  // place and size
  for (const Parameter& parameter : expert_parameters_.all()) mine.push_back({parameter.place, parameter.size});
  std::vector<int64_t> parameters_of, send(static_cast<size_t>(group_size())), receive(send.size());
  const auto everything = parallel_->group().all_gather_v<std::array<int64_t, 2>>(mine, &parameters_of);
  send[0] = expert_parameters_.size();
  int64_t total = 0;
  auto entry = everything.begin();
  for (size_t rank = 0; root && rank < receive.size(); ++rank) {
    for (int64_t i = 0; i < parameters_of[rank]; ++i) receive[rank] += (*entry++)[1];
    total += receive[rank];
  }
  Tensor values(DType::f32, {total});
  parallel_->group().all_to_all_v(expert_parameters_.values().raw(), send, values.raw(), receive, sizeof(float));
  const float* from = values.data<float>();
  for (size_t i = 0; root && i < everything.size(); ++i) {
    const auto [place, size] = everything[i];
    put(place, from, size);
    from += size;
  }
  return all;
}

void TrainedModel::pack() {
  const Backend& backend = base_.backend();
  for_each_linear([&](LoraLinear& linear, const ParameterSet& parameters) { linear.pack(backend, parameters); });
  for (int64_t l = 0; num_routed_experts() > 0 && l < num_layers(); ++l) {
    MoeBlock& block = moe(l);
    if (block.weight >= 0) block.router.weight = backend.prepare(parameters_.value(block.weight), DType::f32);
    if (block.gate_proj >= 0) {
      block.router.gate_proj = backend.prepare(parameters_.value(block.gate_proj), DType::f32);
      block.router.up_proj = backend.prepare(parameters_.value(block.up_proj), DType::f32);
    }
  }
}

}  // namespace cmoe

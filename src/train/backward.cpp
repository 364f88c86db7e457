// One sequence through the model and back: the mirror of Transformer::forward.
#include <bit>
#include <cmath>

#include "base/error.h"
#include "train/trained_model.h"

namespace cmoe {
namespace {

// Documents as a batch of the plain model, with caches that no layer keeps.
class DocumentBatch {
 public:
  DocumentBatch(const ModelConfig& config, std::span<const int32_t> tokens, const Segments& segments) {
    size_t at = 0;
    for (int64_t rows : segments.rows) {
      caches_.push_back(std::make_unique<KvCache>(config, rows, KvCache::Keep::one_layer));
      steps_.push_back({tokens.subspan(at, static_cast<size_t>(rows)), caches_.back().get()});
      at += static_cast<size_t>(rows);
    }
  }
  Batch batch() const { return Batch(steps_); }

 private:
  std::vector<std::unique_ptr<KvCache>> caches_;
  std::vector<SequenceStep> steps_;
};

// The next token of the same document; -1 behind a document's last.
std::vector<int32_t> next_tokens(std::span<const int32_t> tokens, const Segments& segments) {
  std::vector<int32_t> targets(tokens.size());
  size_t row = 0;
  for (int64_t rows : segments.rows) {
    for (int64_t i = 0; i < rows; ++i, ++row) targets[row] = i + 1 < rows ? tokens[row + 1] : -1;
  }
  return targets;
}

// What the teacher makes of the same tokens.
struct TeacherStates {
  std::vector<Tensor> layers;  // [T, d] after each layer, where hidden states are matched
  Tensor last;                 // after the final norm
};

TeacherStates run_teacher(const Transformer& teacher, const Batch& batch, bool keep_layers) {
  TeacherStates states;
  Tensor x = teacher.embed(batch);
  for (int64_t l = 0; l < teacher.config().num_hidden_layers; ++l) {
    teacher.add_attention(l, batch, x);
    teacher.add_ffn(l, teacher.ffn_input(l, x), x);
    if (keep_layers) states.layers.push_back(x.clone());
  }
  states.last = teacher.final_norm(x);
  return states;
}

// dx += factor (sum over rows of |x_t - teacher_t|^2 / |teacher_t|^2)'; returns that sum. Each token counts alike: the first of
// a sequence, which models use as a place to attend to nothing, can be a thousand times as long as the others.
double add_hidden_gradient(const Tensor& x, const Tensor& teacher, double factor, Tensor& dx) {
  const int64_t d = x.dim(1);
  double loss = 0;
  for (int64_t t = 0; t < x.dim(0); ++t) {
    const float *row = x.row<float>(t), *wanted = teacher.row<float>(t);
    double square = 1e-20, difference = 0;
    for (int64_t i = 0; i < d; ++i) {
      const double w = static_cast<double>(wanted[i]), delta = static_cast<double>(row[i]) - w;
      square += w * w;
      difference += delta * delta;
    }
    loss += difference / square;
    const auto scale = static_cast<float>(2 * factor / square);
    float* to = dx.row<float>(t);
    for (int64_t i = 0; i < d; ++i) to[i] += scale * (row[i] - wanted[i]);
  }
  return loss;
}

bool all_finite(const Tensor& x) {
  constexpr uint32_t kExponent = 0x7f800000u;  // all ones: infinite, or not a number
  uint32_t found = 0;
  for (float value : x.span<float>()) found |= static_cast<uint32_t>((std::bit_cast<uint32_t>(value) & kExponent) == kExponent);
  return found == 0;
}

}  // namespace

Segments whole_sequence(int64_t tokens) {
  Segments segments{.rows = {tokens}, .positions = {}};
  for (int64_t i = 0; i < tokens; ++i) segments.positions.push_back(static_cast<int32_t>(i));
  return segments;
}

Segments split_documents(std::span<const int32_t> tokens, int32_t end_of_text) {
  Segments segments;
  int64_t rows = 0;
  for (int32_t token : tokens) {
    segments.positions.push_back(static_cast<int32_t>(rows++));
    if (token == end_of_text) {
      segments.rows.push_back(rows);
      rows = 0;
    }
  }
  if (rows > 0) segments.rows.push_back(rows);
  return segments;
}

Tensor TrainedModel::embed(std::span<const int32_t> tokens, const Segments& segments) const {
  return base_.embed(DocumentBatch(base_.config(), tokens, segments).batch());
}

TrainedModel::Gradients TrainedModel::make_gradients() const {
  Gradients gradients{Tensor::zeros(DType::f32, {parameters_.size()}), {}};
  for (int rank = 0; rank < group_size(); ++rank)
    gradients.experts.push_back(Tensor::zeros(DType::f32, {expert_parameters_.size()}));
  return gradients;
}

GroupPass TrainedModel::group_pass(const Dropout& dropout, const Gradients* gradients, double token_weight) const {
  const auto ranks = static_cast<size_t>(group_size()), me = static_cast<size_t>(parallel_ ? parallel_->rank() : 0);
  if (dropout.probability > 0 && dropout.keys.size() != ranks)
    fail_internal("train: {} dropout keys for a group of {} ranks", dropout.keys.size(), ranks);
  const auto of = [&](size_t rank, const ParameterSet& parameters, const Tensor* gradient) {
    return SequencePass{.backend = base_.backend(),
                        .parameters = parameters,
                        .gradient = gradient,
                        .dropout_key = dropout.probability > 0 ? dropout.keys[rank] : 0,
                        .dropout = dropout.probability,
                        .token_weight = static_cast<float>(token_weight)};
  };
  GroupPass pass{of(me, parameters_, gradients ? &gradients->parameters : nullptr), {}};
  for (size_t r = 0; r < ranks; ++r)
    pass.sources.push_back(of(r, expert_parameters_, gradients ? &gradients->experts[r] : nullptr));
  return pass;
}

// x becomes the attention's output; saved.ffn_input what the FFN reads of it.
void TrainedModel::forward_attention(const GroupPass& pass, const Segments& segments, int64_t index, Tensor& x,
                                     Saved& saved) const {
  const Layer& layer = layers_[static_cast<size_t>(index)];
  layer.attention.forward(pass.own, segments, x, saved.attention);
  CMOE_CHECK(all_finite(x), "layer {}: its attention gave a value that is not finite; lower the learning rate", index);
  saved.x = x.clone();
  norm_for_ffn(pass, index, x, saved);
}

void TrainedModel::norm_for_ffn(const GroupPass& pass, int64_t index, const Tensor& x, Saved& saved) const {
  const Layer& layer = layers_[static_cast<size_t>(index)];
  saved.ffn_input = Tensor(DType::f32, x.shape());
  pass.own.backend.rms_norm(x, *layer.ffn_norm, layer.attention.epsilon, saved.ffn_input);
}

void TrainedModel::forward_ffn(const GroupPass& pass, int64_t index, Tensor& x, Saved& saved) const {
  const Layer& layer = layers_[static_cast<size_t>(index)];
  if (const auto* dense = std::get_if<FfnBlock>(&layer.ffn)) {
    dense->forward(pass.own, saved.ffn_input, {}, x, /*accumulate=*/true, saved.ffn.emplace<FfnBlock::Saved>());
  } else {
    std::get<MoeBlock>(layer.ffn).forward(pass, saved.ffn_input, x, saved.ffn.emplace<MoeBlock::Saved>());
  }
  CMOE_CHECK(all_finite(x), "layer {}: its FFN gave a value that is not finite; lower the learning rate", index);
}

void TrainedModel::forward_layer(const GroupPass& pass, const Segments& segments, int64_t index, Tensor& x,
                                 Saved& saved) const {
  forward_attention(pass, segments, index, x, saved);
  forward_ffn(pass, index, x, saved);
}

void TrainedModel::backward_layer(const GroupPass& pass, const Segments& segments, int64_t index, const Saved& saved,
                                  Tensor& dx) const {
  const Layer& layer = layers_[static_cast<size_t>(index)];
  Tensor dinput(DType::f32, dx.shape());
  if (const auto* dense = std::get_if<FfnBlock>(&layer.ffn)) {
    dense->backward(pass.own, saved.ffn_input, {}, dx, std::get<FfnBlock::Saved>(saved.ffn), dinput, false);
  } else {
    std::get<MoeBlock>(layer.ffn).backward(pass, saved.ffn_input, std::get<MoeBlock::Saved>(saved.ffn), dx, dinput);
  }
  pass.own.backend.rms_norm_backward(saved.x, *layer.ffn_norm, layer.attention.epsilon, dinput, dx);
  layer.attention.backward(pass.own, segments, saved.attention, dx);
}

void TrainedModel::count(int64_t layer, const Saved& saved, Routed& routed) const {
  const int64_t experts = num_routed_experts();
  if (experts == 0) return;
  const auto& moe_saved = std::get<MoeBlock::Saved>(saved.ffn);
  routed.loads.resize(static_cast<size_t>(num_layers() * experts));
  for (int32_t expert : moe_saved.routing.expert_idx) ++routed.loads[static_cast<size_t>(layer * experts + expert)];
  if (!routed.scores.empty()) append_scores(layer, moe_saved.scores, routed.scores[static_cast<size_t>(layer)]);
}

// s + b [T, R], which the selection compares with the threshold.
void TrainedModel::append_scores(int64_t layer, const Tensor& scores, std::vector<float>& to) const {
  const Tensor& bias = router(layer).selection_bias;
  for (int64_t t = 0; t < scores.dim(0); ++t) {
    for (int64_t j = 0; j < scores.dim(1); ++j)
      to.push_back(scores.row<float>(t)[j] + (bias.size() > 0 ? bias.data<float>()[j] : 0.0f));
  }
}

SequenceLoss TrainedModel::add_gradient(std::span<const int32_t> tokens, const Segments& segments, const LossOptions& options,
                                        const Teacher& teacher, double token_weight, const Dropout& dropout,
                                        const Gradients& gradients, Routed& routed) const {
  const GroupPass pass = group_pass(dropout, &gradients, token_weight);
  const bool distils = teacher.model && !tokens.empty();
  const int64_t layers = num_layers();
  const std::vector<int32_t> targets = next_tokens(tokens, segments);
  TeacherStates taught;
  if (distils) {
    const auto run = [&] {
      const DocumentBatch documents(teacher.model->config(), tokens, segments);
      return run_teacher(*teacher.model, documents.batch(), teacher.hidden);
    };
    if (teacher.stored) {
      taught.last = teacher.stored->get(tokens, segments.rows, [&] { return run().last; });
    } else {
      taught = run();
    }
  }

  Tensor x = embed(tokens, segments);
  std::vector<Saved> saved(static_cast<size_t>(layers));
  std::vector<Tensor> outputs;  // after each layer, where the teacher's are matched
  for (int64_t l = 0; l < layers; ++l) {
    Saved& now = saved[static_cast<size_t>(l)];
    const Tensor input = options.recompute ? x.clone() : Tensor();
    forward_layer(pass, segments, l, x, now);
    count(l, now, routed);
    if (distils && teacher.hidden) outputs.push_back(x.clone());
    if (options.recompute) {
      now = Saved();
      now.input = input;
    }
  }

  Tensor hidden(DType::f32, x.shape()), dhidden(DType::f32, x.shape());
  const auto epsilon = static_cast<float>(base_.config().rms_norm_eps);
  pass.own.backend.rms_norm(x, base_.final_norm_weight(), epsilon, hidden);
  const Backend::LossWeights weights{.nll = static_cast<float>(options.nll * token_weight),
                                     .kl = distils && teacher.logits ? static_cast<float>(options.kl * token_weight) : 0.0f,
                                     .temperature = static_cast<float>(options.temperature),
                                     .teacher_x = distils && teacher.logits ? &taught.last : nullptr,
                                     .teacher_head = distils && teacher.logits ? &teacher.model->head() : nullptr};
  std::vector<double> nll(targets.size()), kl(targets.size());
  pass.own.backend.cross_entropy_backward(hidden, base_.head(), targets, weights, nll, kl, dhidden);
  SequenceLoss loss;
  for (size_t i = 0; i < targets.size(); ++i) {
    loss.nll += nll[i];
    loss.kl += kl[i];
    loss.targets += targets[i] >= 0;
  }
  CMOE_CHECK(std::isfinite(loss.nll + loss.kl), "head: the loss is not finite; lower the learning rate");

  Tensor dx = Tensor::zeros(DType::f32, x.shape());
  pass.own.backend.rms_norm_backward(x, base_.final_norm_weight(), epsilon, dhidden, dx);
  for (int64_t l = layers - 1; l >= 0; --l) {
    Saved& now = saved[static_cast<size_t>(l)];
    if (distils && teacher.hidden) {
      const double share = 1.0 / static_cast<double>(layers);
      loss.hidden += share * add_hidden_gradient(outputs[static_cast<size_t>(l)], taught.layers[static_cast<size_t>(l)],
                                                 options.hidden * token_weight * share, dx);
    }
    if (options.recompute) {
      Tensor again = now.input;
      forward_layer(pass, segments, l, again, now);
    }
    backward_layer(pass, segments, l, now, dx);
    now = Saved();
  }
  return loss;
}

Tensor TrainedModel::hidden_states(std::span<const int32_t> tokens, const Segments& segments) const {
  const GroupPass pass = group_pass({}, nullptr, 1);
  Tensor x = embed(tokens, segments);
  for (int64_t l = 0; l < num_layers(); ++l) {
    Saved saved;
    forward_layer(pass, segments, l, x, saved);
  }
  return base_.final_norm(x);
}

SequenceLoss TrainedModel::evaluate(std::span<const int32_t> tokens, const Segments& segments) const {
  const std::vector<int32_t> targets = next_tokens(tokens, segments);
  const std::vector<double> nll = base_.token_nll(hidden_states(tokens, segments), targets);
  SequenceLoss loss;
  for (size_t i = 0; i < targets.size(); ++i) {
    loss.nll += nll[i];
    loss.targets += targets[i] >= 0;
  }
  return loss;
}

}  // namespace cmoe

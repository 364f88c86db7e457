#include "model/transformer.h"

#include "base/error.h"
#include "base/stage.h"

namespace cmoe {

Batch::Batch(std::span<const SequenceStep> steps) : steps_(steps.begin(), steps.end()) {
  for (const SequenceStep& step : steps_) {
    const int64_t past = step.cache->length();
    const auto count = static_cast<int64_t>(step.tokens.size());
    CMOE_CHECK(past + count <= step.cache->capacity(), "batch: a sequence of {} + {} tokens does not fit its KV cache of {}",
               past, count, step.cache->capacity());
    for (int64_t i = 0; i < count; ++i) {
      ids_.push_back(step.tokens[static_cast<size_t>(i)]);
      positions_.push_back(static_cast<int32_t>(past + i));
    }
    row_end_.push_back(static_cast<int64_t>(ids_.size()));
  }
}

std::vector<AttentionSpan> Batch::spans(int64_t layer) const {
  std::vector<AttentionSpan> spans;
  int64_t row = 0;
  for (const SequenceStep& step : steps_) {
    const auto count = static_cast<int64_t>(step.tokens.size());
    spans.push_back({.row_begin = row,
                     .rows = count,
                     .past = step.cache->length(),
                     .key = step.cache->key(layer),
                     .value = step.cache->value(layer),
                     .capacity = step.cache->capacity()});
    row += count;
  }
  return spans;
}

void Batch::advance() const {
  for (const SequenceStep& step : steps_)
    step.cache->set_length(step.cache->length() + static_cast<int64_t>(step.tokens.size()));
}

Tensor Transformer::forward(const Batch& batch, MoeObserver* observer) const {
  Tensor x = embed(batch);
  for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
    set_stage_layer(layer);
    add_attention(layer, batch, x);
    add_ffn(layer, ffn_input(layer, x), x, observer);
  }
  batch.advance();
  return final_norm(x);
}

Tensor Transformer::embed(const Batch& batch) const {
  Tensor x(DType::f32, {batch.rows(), config_.hidden_size});
  for (int32_t id : batch.ids()) {
    CMOE_CHECK(id >= 0 && id < config_.vocab_size, "token {} is not in the model's vocabulary of {}", id, config_.vocab_size);
  }
  for (int32_t position : batch.positions()) {
    CMOE_CHECK(position < rope_cos_.dim(0), "position {} is past the model's max_position_embeddings {}", position,
               rope_cos_.dim(0));
  }
  backend_->embed(batch.ids(), embedding_, x);
  return x;
}

// x += W_o attention(rope(W_q a), rope(W_k a), W_v a) with a = norm(x)
void Transformer::add_attention(int64_t layer, const Batch& batch, Tensor& x) const {
  const AttentionWeights& w = layers_[static_cast<size_t>(layer)].attention;
  const int64_t rows = x.dim(0);
  Tensor a(DType::f32, x.shape());
  Tensor q(DType::f32, {rows, w.q.out_features()});
  Tensor k(DType::f32, {rows, w.k.out_features()});
  Tensor v(DType::f32, {rows, w.v.out_features()});
  Tensor out(DType::f32, q.shape());
  backend_->rms_norm(x, w.norm, static_cast<float>(config_.rms_norm_eps), a);
  backend_->linear(a, w.q, q);
  backend_->linear(a, w.k, k);
  backend_->linear(a, w.v, v);
  backend_->rope(q, config_.head_dim, batch.positions(), rope_cos_, rope_sin_);
  backend_->rope(k, config_.head_dim, batch.positions(), rope_cos_, rope_sin_);
  backend_->attention(q, k, v, batch.spans(layer), config_.head_dim, dtype_, out);
  backend_->linear(out, w.o, x, /*accumulate=*/true);
}

Tensor Transformer::ffn_input(int64_t layer, const Tensor& x) const {
  Tensor input(DType::f32, x.shape());
  backend_->rms_norm(x, layers_[static_cast<size_t>(layer)].ffn_norm, static_cast<float>(config_.rms_norm_eps), input);
  return input;
}

void Transformer::add_ffn(int64_t layer, const Tensor& input, Tensor& x, MoeObserver* observer) const {
  const auto& ffn = layers_[static_cast<size_t>(layer)].ffn;
  if (const auto* dense = std::get_if<GatedFfn>(&ffn)) {
    gated_ffn(*backend_, *dense, input, x, /*accumulate=*/true);
  } else {
    std::get<MoeLayer>(ffn).add_to(*backend_, layer, input, x, observer);
  }
}

Tensor Transformer::final_norm(const Tensor& x) const {
  Tensor hidden(DType::f32, x.shape());
  backend_->rms_norm(x, final_norm_, static_cast<float>(config_.rms_norm_eps), hidden);
  return hidden;
}

Tensor Transformer::logits(const Tensor& hidden) const {
  Tensor logits(DType::f32, {hidden.dim(0), config_.vocab_size});
  backend_->linear(hidden, head_, logits);
  return logits;
}

std::vector<double> Transformer::token_nll(const Tensor& hidden, std::span<const int32_t> targets) const {
  std::vector<double> nll(targets.size());
  backend_->cross_entropy(hidden, head_, targets, nll);
  return nll;
}

}  // namespace cmoe

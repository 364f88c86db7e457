#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "model/checkpoint.h"

namespace cmoe {

/// A Llama decoder written down once more, in f64, one token and one head at a time, for comparison: no batches, no caches.
class PlainLlama {
 public:
  using Matrix = std::vector<std::vector<double>>;  // rows

  explicit PlainLlama(const Checkpoint& checkpoint) : checkpoint_(checkpoint), config_(checkpoint.config) {}

  /// What one FFN saw and did.
  struct Ffn {
    Matrix input;  ///< [T, d]
    Matrix h;      ///< [T, f]
  };

  /// Runs one sequence; calls `see` with every layer's FFN and returns the final residual stream after its norm, [T, d].
  Matrix run(std::span<const int32_t> tokens, const std::function<void(int64_t layer, const Ffn& ffn)>& see) const {
    const Matrix embedding = matrix("model.embed_tokens.weight");
    Matrix x;
    for (int32_t id : tokens) x.push_back(embedding[static_cast<size_t>(id)]);
    for (int64_t l = 0; l < config_.num_hidden_layers; ++l) {
      const std::string prefix = "model.layers." + std::to_string(l) + ".";
      add(attention(prefix + "self_attn.", norm(x, prefix + "input_layernorm.weight")), x);
      Ffn ffn{.input = norm(x, prefix + "post_attention_layernorm.weight"), .h = {}};
      const Matrix up = times(ffn.input, matrix(prefix + "mlp.up_proj.weight"));
      ffn.h = times(ffn.input, matrix(prefix + "mlp.gate_proj.weight"));
      for (size_t t = 0; t < up.size(); ++t) {
        for (size_t i = 0; i < up[t].size(); ++i) ffn.h[t][i] = ffn.h[t][i] / (1 + std::exp(-ffn.h[t][i])) * up[t][i];
      }
      add(times(ffn.h, matrix(prefix + "mlp.down_proj.weight")), x);
      see(l, ffn);
    }
    return norm(x, "model.norm.weight");
  }

  /// -log p(tokens[t + 1] | tokens[0..t]), nats, for every t but the last.
  std::vector<double> nll(std::span<const int32_t> tokens) const {
    const Matrix hidden = run(tokens, [](int64_t, const Ffn&) {});
    const Matrix logits = times(hidden, matrix(config_.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight"));
    std::vector<double> result;
    for (size_t t = 0; t + 1 < tokens.size(); ++t) {
      double top = logits[t][0], sum = 0;
      for (double v : logits[t]) top = std::max(top, v);
      for (double v : logits[t]) sum += std::exp(v - top);
      result.push_back(top + std::log(sum) - logits[t][static_cast<size_t>(tokens[t + 1])]);
    }
    return result;
  }

  Matrix matrix(const std::string& name) const {
    const Shape shape = checkpoint_.tensors->shape(name);
    const Tensor tensor = checkpoint_.tensors->read(name, shape, DType::f32);
    Matrix rows(static_cast<size_t>(shape[0]));
    for (int64_t i = 0; i < shape[0]; ++i)
      rows[static_cast<size_t>(i)].assign(tensor.row<float>(i), tensor.row<float>(i) + shape[1]);
    return rows;
  }

  /// x W^T.
  static Matrix times(const Matrix& x, const Matrix& w) {
    Matrix y(x.size(), std::vector<double>(w.size()));
    for (size_t t = 0; t < x.size(); ++t) {
      for (size_t o = 0; o < w.size(); ++o) {
        for (size_t i = 0; i < w[o].size(); ++i) y[t][o] += x[t][i] * w[o][i];
      }
    }
    return y;
  }

 private:
  static void add(const Matrix& y, Matrix& x) {
    for (size_t t = 0; t < x.size(); ++t) {
      for (size_t i = 0; i < x[t].size(); ++i) x[t][i] += y[t][i];
    }
  }

  Matrix norm(const Matrix& x, const std::string& name) const {
    const Tensor weight = checkpoint_.tensors->read(name, {config_.hidden_size}, DType::f32);
    Matrix y = x;
    for (std::vector<double>& row : y) {
      double square = 0;
      for (double v : row) square += v * v;
      const double scale = 1 / std::sqrt(square / static_cast<double>(row.size()) + config_.rms_norm_eps);
      for (size_t i = 0; i < row.size(); ++i) row[i] *= scale * weight.data<float>()[i];
    }
    return y;
  }

  // Rotates pairs (i, i + half) of a head by position * theta^(-i / half).
  void rotate(double* head, size_t position) const {
    const auto half = static_cast<size_t>(config_.head_dim / 2);
    for (size_t i = 0; i < half; ++i) {
      const double angle =
          static_cast<double>(position) * std::pow(config_.rope_theta, -static_cast<double>(i) / static_cast<double>(half));
      const double a = head[i], b = head[i + half];
      head[i] = a * std::cos(angle) - b * std::sin(angle);
      head[i + half] = b * std::cos(angle) + a * std::sin(angle);
    }
  }

  Matrix attention(const std::string& prefix, const Matrix& x) const {
    Matrix q = times(x, matrix(prefix + "q_proj.weight")), k = times(x, matrix(prefix + "k_proj.weight"));
    const Matrix v = times(x, matrix(prefix + "v_proj.weight"));
    const auto dim = static_cast<size_t>(config_.head_dim), heads = static_cast<size_t>(config_.num_attention_heads);
    const auto kv_heads = static_cast<size_t>(config_.num_key_value_heads);
    for (size_t t = 0; t < x.size(); ++t) {
      for (size_t head = 0; head < heads; ++head) rotate(&q[t][head * dim], t);
      for (size_t head = 0; head < kv_heads; ++head) rotate(&k[t][head * dim], t);
    }
    Matrix out(x.size(), std::vector<double>(heads * dim));
    for (size_t t = 0; t < x.size(); ++t) {
      for (size_t head = 0; head < heads; ++head) {
        const size_t kv = head / (heads / kv_heads);
        std::vector<double> score(t + 1);
        double sum = 0;
        for (size_t s = 0; s <= t; ++s) {
          double dot = 0;
          for (size_t i = 0; i < dim; ++i) dot += q[t][head * dim + i] * k[s][kv * dim + i];
          sum += score[s] = std::exp(dot / std::sqrt(static_cast<double>(dim)));
        }
        for (size_t s = 0; s <= t; ++s) {
          for (size_t i = 0; i < dim; ++i) out[t][head * dim + i] += score[s] / sum * v[s][kv * dim + i];
        }
      }
    }
    return times(out, matrix(prefix + "o_proj.weight"));
  }

  const Checkpoint& checkpoint_;
  ModelConfig config_;
};

}  // namespace cmoe

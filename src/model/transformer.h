#pragma once

#include <memory>
#include <span>
#include <variant>
#include <vector>

#include "backend/backend.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "moe/moe_layer.h"

namespace cmoe {

/// New tokens of one sequence in a step, and its cache, which holds what came before.
struct SequenceStep {
  std::span<const int32_t> tokens;
  KvCache* cache;
};

/// A ragged batch: the new tokens of several sequences, one after the other.
class Batch {
 public:
  /// @throws Error when a cache is too small for its sequence's tokens.
  explicit Batch(std::span<const SequenceStep> steps);

  int64_t rows() const { return static_cast<int64_t>(ids_.size()); }
  std::span<const int32_t> ids() const { return ids_; }
  std::span<const int32_t> positions() const { return positions_; }
  /// Row of the last new token of sequence `i`.
  int64_t last_row(size_t i) const { return row_end_[i] - 1; }
  std::vector<AttentionSpan> spans(int64_t layer) const;
  /// Marks the new tokens as stored, after the last layer ran.
  void advance() const;

 private:
  std::vector<SequenceStep> steps_;
  std::vector<int32_t> ids_, positions_;
  std::vector<int64_t> row_end_;
};

struct AttentionWeights {
  Tensor norm;  ///< [d]
  Weight q;     ///< [heads * head_dim, d]
  Weight k, v;  ///< [kv_heads * head_dim, d]
  Weight o;     ///< [d, heads * head_dim]
};

struct DecoderLayer {
  AttentionWeights attention;
  Tensor ffn_norm;  ///< [d]
  std::variant<GatedFfn, MoeLayer> ffn;
};

/// A Llama-family decoder, dense or carved. One forward pass in stages, so that profiling and carving can look between them.
class Transformer {
 public:
  /// Which layers' FFNs are loaded. A carve reads each layer's FFN itself.
  enum class LoadFfn { yes, no };

  /// Reads and prepares the weights. `dtype` f32 or bf16 is the type of all matrices; norms and routers stay f32.
  /// `experts` says which routed experts this rank holds: it reads no others. All of them by default, on a group of one.
  Transformer(const Checkpoint& checkpoint, std::shared_ptr<const Backend> backend, DType dtype, LoadFfn ffn = LoadFfn::yes,
              std::shared_ptr<const ExpertParallel> experts = nullptr);

  const ModelConfig& config() const { return config_; }
  const Backend& backend() const { return *backend_; }
  DType dtype() const { return dtype_; }
  std::vector<DecoderLayer>& layers() { return layers_; }
  const std::vector<DecoderLayer>& layers() const { return layers_; }

  /// Hidden states after the final norm [rows, d]. `observer` sees every layer's routing. Collective when experts are spread.
  Tensor forward(const Batch& batch, MoeObserver* observer = nullptr) const;

  /// Logits [rows, vocab] of hidden states after the final norm.
  Tensor logits(const Tensor& hidden) const;
  /// -log p(target) of each row, nats; rows with a negative target give 0.
  std::vector<double> token_nll(const Tensor& hidden, std::span<const int32_t> targets) const;

  // Stages of forward(). x is the residual stream [rows, d].
  Tensor embed(const Batch& batch) const;
  void add_attention(int64_t layer, const Batch& batch, Tensor& x) const;
  Tensor ffn_input(int64_t layer, const Tensor& x) const;
  void add_ffn(int64_t layer, const Tensor& input, Tensor& x, MoeObserver* observer = nullptr) const;
  Tensor final_norm(const Tensor& x) const;

  // What training reads beside the layers.
  const Tensor& final_norm_weight() const { return final_norm_; }
  const Weight& head() const { return head_; }
  const Tensor& rope_cos() const { return rope_cos_; }
  const Tensor& rope_sin() const { return rope_sin_; }

  /// Bytes of all weights held by this rank.
  int64_t weight_bytes() const;

 private:
  ModelConfig config_;
  std::shared_ptr<const Backend> backend_;
  DType dtype_;
  Tensor embedding_;  ///< [vocab, d]
  std::vector<DecoderLayer> layers_;
  Tensor final_norm_;           ///< [d]
  Weight head_;                 ///< [vocab, d]
  Tensor rope_cos_, rope_sin_;  ///< [max_position_embeddings, head_dim / 2]
};

/// Reads and prepares one layer's FFN, dense or carved, as the Transformer does for all. `experts` as there.
std::variant<GatedFfn, MoeLayer> read_ffn(const Checkpoint& checkpoint, const Backend& backend, DType dtype, int64_t layer,
                                          std::shared_ptr<const ExpertParallel> experts = nullptr);

/// Reads the dense FFN of one layer: gate and up [f, d], down [d, f].
struct DenseFfnTensors {
  Tensor gate, up, down;
};
DenseFfnTensors read_dense_ffn(const Checkpoint& checkpoint, int64_t layer, DType dtype);

/// cos and sin of every position and rotated pair, [positions, head_dim / 2] each; Llama-3 and linear scaling applied.
void rope_tables(const ModelConfig& config, int64_t positions, Tensor& cos, Tensor& sin);

}  // namespace cmoe

#pragma once

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "model/checkpoint.h"
#include "model/transformer.h"
#include "train/attention_block.h"
#include "train/moe_block.h"
#include "train/teacher_rows.h"

namespace cmoe {

/// What is trained, and how adapters are scaled.
struct TrainedParts {
  std::set<std::string> lora_targets{"q", "k", "v", "o", "gate", "up", "down"};
  int64_t rank = 8;
  int64_t expert_rank = 0;  ///< of routed experts; 0 takes `rank`
  double alpha = 32;
  bool rslora = false;           ///< scale alpha / sqrt(rank) in place of alpha / rank
  bool router_scale = true;      ///< u
  bool router_bias = true;       ///< b, by counting loads; the threshold follows its quantile
  bool keep_router_bias = true;  ///< false: b serves while training and is not written, as in the authors' code
  bool router_weights = false;
  double router_regression = 0;  ///< weight of (s_j - |E_j(x)|)^2 summed over active experts; linear routers

  double scale_of(int64_t lora_rank) const;
};

/// A training sequence: tokens and the documents in it.
struct TrainingSequence {
  std::span<const int32_t> tokens;
  Segments segments;
};

/// Loss of one sequence, sums over its targets before weighting.
struct SequenceLoss {
  double nll = 0, kl = 0;
  double hidden = 0;  ///< mean over layers of |x_l - teacher_l|^2 / |teacher_l|^2, times targets
  int64_t targets = 0;
};

/// A model with adapters: forward and backward of one sequence, everything frozen but its parameters.
///
/// Where `base` holds some of the routed experts, this holds their adapters and no others. The ranks that share the experts,
/// its group, then pass their sequences through the model together: calls marked collective are made by all of them in the same
/// order, those without a sequence with no tokens.
///
/// The routers' tensors (scale, selection bias, threshold) are this object's own; the Transformer keeps what it loaded.
class TrainedModel {
 public:
  /// Adapts the matrices of `base`, which must outlive this. @param checkpoint  what `base` was loaded from.
  /// @throws Error on a target or option that the model cannot have.
  TrainedModel(const Checkpoint& checkpoint, const Transformer& base, const TrainedParts& parts, uint64_t seed);
  TrainedModel(const TrainedModel&) = delete;
  TrainedModel& operator=(const TrainedModel&) = delete;

  const Transformer& base() const { return base_; }
  const TrainedParts& parts() const { return parts_; }
  /// Who holds which expert; null in a dense model.
  const ExpertParallel* parallel() const { return parallel_.get(); }
  int group_size() const { return parallel_ ? parallel_->ranks() : 1; }
  /// What every rank holds.
  ParameterSet& parameters() { return parameters_; }
  const ParameterSet& parameters() const { return parameters_; }
  /// Of the routed experts that this rank holds.
  ParameterSet& expert_parameters() { return expert_parameters_; }
  const ParameterSet& expert_parameters() const { return expert_parameters_; }
  /// Of the whole model, whoever holds them.
  const ParameterLayout& layout() const { return layout_; }
  /// [layout().size()] all values in that order, on rank 0 of the group; undefined on its other ranks. Collective.
  Tensor collect_values() const;
  /// Routed experts of each layer; 0 in a dense model.
  int64_t num_routed_experts() const;
  int64_t num_layers() const { return static_cast<int64_t>(layers_.size()); }
  Router& router(int64_t layer) { return moe(layer).router; }
  const Router& router(int64_t layer) const { return const_cast<TrainedModel*>(this)->router(layer); }
  /// Of every layer's router; empty in a dense model.
  std::vector<float> thresholds() const;
  void set_thresholds(const std::vector<float>& thresholds);

  /// Packs the parameters of now for the next sequences. After every change of values().
  void pack();

  /// What a sequence's pass hands out beside its gradient.
  struct Routed {
    std::vector<int64_t> loads;              ///< [layers * R] tokens per expert, added to
    std::vector<std::vector<float>> scores;  ///< [layers] of s + b, appended to where it has layers
  };
  struct Teacher {
    const Transformer* model = nullptr;
    bool logits = false, hidden = false;
    const TeacherRows* stored = nullptr;  ///< where the rows before the head are kept; not with `hidden`
  };
  struct LossOptions {
    double nll = 1, kl = 0, hidden = 0;  ///< weights, per token of the step
    double temperature = 1;
    bool recompute = false;  ///< keep each layer's input alone and run the layer again in backward
  };

  struct Dropout {
    float probability = 0;
    std::vector<uint64_t> keys;  ///< [ranks of the group] of (seed, sequence) of each rank's sequence; unused without dropout
  };
  /// Flat vectors that gradients are added to.
  struct Gradients {
    Tensor parameters;            ///< of parameters(), by this rank's sequence
    std::vector<Tensor> experts;  ///< [ranks of the group] of expert_parameters(), by each rank's sequence
  };
  /// All zero.
  Gradients make_gradients() const;

  /// Adds the gradient of the loss of one sequence on each rank: tokens[i + 1] is the target of row i, of row i's document.
  /// Collective over the group. @return  of this rank's sequence.
  /// @param token_weight  1 / the targets of the whole step. @throws Error naming the layer where a value is not finite.
  SequenceLoss add_gradient(std::span<const int32_t> tokens, const Segments& segments, const LossOptions& loss,
                            const Teacher& teacher, double token_weight, const Dropout& dropout, const Gradients& gradients,
                            Routed& routed) const;

  /// Loss alone, without dropout. Collective over the group.
  SequenceLoss evaluate(std::span<const int32_t> tokens, const Segments& segments) const;
  /// Sets every layer's threshold to that at which `sequences` take num_experts_per_tok experts a token in the mean, without
  /// dropout: the (T A)-th largest of their T R values s + b. Layer after layer, each seeing what those before it make with
  /// theirs. The sequences go round the ranks of `comm`, which are whole groups; the result is the same for any number of them.
  /// A model without threshold selector stays as it is. Collective over comm.
  /// @param stop  asked before each layer, with one answer on all ranks: when true, all thresholds are as before and the result
  /// is false.
  bool calibrate_thresholds(std::span<const TrainingSequence> sequences, Communicator& comm,
                            const std::function<bool()>& stop = {});

  /// Hidden states after the final norm [T, d], without dropout. Collective over the group.
  Tensor hidden_states(std::span<const int32_t> tokens, const Segments& segments) const;

 private:
  struct Layer {
    AttentionBlock attention;
    const Tensor* ffn_norm;
    std::variant<FfnBlock, MoeBlock> ffn;
  };
  struct Saved {
    Tensor input;  ///< of the layer, where it is to run again
    AttentionBlock::Saved attention;
    Tensor x, ffn_input;  ///< [T, d] before and after the FFN's norm
    std::variant<FfnBlock::Saved, MoeBlock::Saved> ffn;
  };

  MoeBlock& moe(int64_t layer) { return std::get<MoeBlock>(layers_[static_cast<size_t>(layer)].ffn); }
  template <class Visit>
  void for_each_linear(const Visit& visit);
  void adapt(LoraLinear& linear, ParameterSet& parameters, const std::string& module, const Weight& weight,
             const std::string& target, int64_t rank);
  FfnBlock adapted_ffn(ParameterSet& parameters, const GatedFfn& ffn, const std::string& module, int64_t rank);
  MoeBlock adapted_moe(const Checkpoint& checkpoint, const MoeLayer& from, int64_t layer);
  GroupPass group_pass(const Dropout& dropout, const Gradients* gradients, double token_weight) const;
  void forward_attention(const GroupPass& pass, const Segments& segments, int64_t layer, Tensor& x, Saved& saved) const;
  void norm_for_ffn(const GroupPass& pass, int64_t layer, const Tensor& x, Saved& saved) const;
  void forward_ffn(const GroupPass& pass, int64_t layer, Tensor& x, Saved& saved) const;
  void forward_layer(const GroupPass& pass, const Segments& segments, int64_t layer, Tensor& x, Saved& saved) const;
  void backward_layer(const GroupPass& pass, const Segments& segments, int64_t layer, const Saved& saved, Tensor& dx) const;
  Tensor embed(std::span<const int32_t> tokens, const Segments& segments) const;
  void append_scores(int64_t layer, const Tensor& scores, std::vector<float>& to) const;
  void count(int64_t layer, const Saved& saved, Routed& routed) const;

  const Transformer& base_;
  TrainedParts parts_;
  std::shared_ptr<const ExpertParallel> parallel_;
  ParameterLayout layout_;
  ParameterSet parameters_{&layout_}, expert_parameters_{&layout_};
  std::vector<Layer> layers_;
  Tensor rope_back_;
};

/// One document over all `tokens`.
Segments whole_sequence(int64_t tokens);
/// Documents that end after each `end_of_text` token.
Segments split_documents(std::span<const int32_t> tokens, int32_t end_of_text);

}  // namespace cmoe

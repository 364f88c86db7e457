#pragma once

#include <optional>
#include <vector>

#include "moe/moe_layer.h"
#include "train/ffn_block.h"

namespace cmoe {

/// What passes through a model at the same time: a sequence, or none, on each rank of the group that shares the experts.
struct GroupPass {
  SequencePass own;                   ///< this rank's sequence; its gradient is of what all ranks hold
  std::vector<SequencePass> sources;  ///< [ranks of the group] each rank's, as the experts of this rank see it
};

/// A carved FFN: y = E_shared(x) + c + sum over active experts j of g_j E_j(x), g_j = 1 + softmax(s)_j u_j.
/// Which experts are active has no gradient; g has, through u and (`train_router`, or not) through the scores to x.
///
/// Tokens travel to the ranks of their experts and back by inference's dispatcher; backward sends dy and brings back dx the
/// same way. An expert works on the rows of each rank by themselves: its gradient of a sequence does not depend on who holds
/// it.
struct MoeBlock {
  std::optional<FfnBlock> shared;
  std::vector<FfnBlock> experts;  ///< [R]; without weights where only other ranks hold the expert
  std::shared_ptr<const ExpertParallel> parallel;
  int64_t layer = 0;
  Router router;  ///< its tensors are those of now: the step writes them
  Tensor compensation_bias;
  int64_t scale = -1;                    ///< parameter u [R], or -1
  int64_t weight = -1, bias = -1;        ///< parameters of a trained linear router, or -1
  int64_t gate_proj = -1, up_proj = -1;  ///< of a trained analytical router, or -1
  float regression = 0;                  ///< weight of (s_j - |E_j(x)|)^2 of active experts; pulls on the router alone

  bool trains_router() const { return weight >= 0 || gate_proj >= 0; }
  bool weighs_outputs() const { return router.scale.size() > 0; }

  struct Saved {
    Routing routing;  ///< of this rank's tokens
    Tensor scores;    ///< [T, R]
    Tensor gate, up;  ///< [T, R] of an analytical router
    FfnBlock::Saved shared;

    // Of the (token, expert) pairs served here, grouped by local expert, then by the rank they come from.
    std::vector<int64_t> row_begin;  ///< [local experts * ranks + 1]
    Tensor rows;                     ///< [pairs, d] inputs of the experts
    std::vector<int32_t> row_token;  ///< [pairs] its number in its sequence
    std::vector<float> row_factor;   ///< [pairs] g
    Tensor outputs;                  ///< [pairs, d] E_j(x), kept where g or the regression needs them
    std::vector<FfnBlock::Saved> experts;
  };
  /// x += FFN(input); input, x [T, d]. Collective over the group, as backward.
  void forward(const GroupPass& pass, const Tensor& input, Tensor& x, Saved& saved) const;
  /// The router's scores of input alone, of a block with routed experts; every rank for itself.
  void score(const SequencePass& pass, const Tensor& input, Saved& saved) const;
  /// dinput = the gradient of the input, given dy [T, d] of the output.
  void backward(const GroupPass& pass, const Tensor& input, const Saved& saved, const Tensor& dy, Tensor& dinput) const;

 private:
  // The rows of one sequence at one expert held here.
  struct RowGroup {
    size_t index;  // in Saved::experts
    const FfnBlock& expert;
    const SequencePass& source;
    int64_t begin, end;
    std::span<const int32_t> tokens;
  };
  // Of one pair: dg = dy . E_j(x), and |E_j(x)| where the regression is on.
  struct PairGradient {
    float factor, norm;
  };

  bool needs_outputs() const { return weighs_outputs() || regression > 0; }
  void receive(const DispatchHandle& handle, const std::vector<int64_t>& expert_offset, Saved& saved) const;
  std::vector<RowGroup> row_groups(const GroupPass& pass, const Saved& saved) const;
  void router_backward(const SequencePass& pass, const Tensor& input, const Saved& saved,
                       const std::vector<PairGradient>& pairs, Tensor& dinput) const;
  void score_backward(const SequencePass& pass, const Tensor& input, const Saved& saved, const Tensor& ds,
                      const Tensor& ds_weights, Tensor& dinput) const;
};

}  // namespace cmoe

#pragma once

#include <optional>
#include <vector>

#include "moe/moe_layer.h"
#include "train/ffn_block.h"
#include "train/grouping.h"

namespace cmoe {

/// A carved FFN: y = E_shared(x) + c + sum over active experts j of g_j E_j(x), g_j = 1 + softmax(s)_j u_j.
/// Which experts are active has no gradient; g has, through u and (`train_router`, or not) through the scores to x.
struct MoeBlock {
  std::optional<FfnBlock> shared;
  std::vector<FfnBlock> experts;
  Router router;  ///< its tensors are those of now: the step writes them
  Tensor compensation_bias;
  int64_t scale = -1;                    ///< parameter u [R], or -1
  int64_t weight = -1, bias = -1;        ///< parameters of a trained linear router, or -1
  int64_t gate_proj = -1, up_proj = -1;  ///< of a trained analytical router, or -1
  float regression = 0;                  ///< weight of (s_j - |E_j(x)|)^2 of active experts; pulls on the router alone

  bool trains_router() const { return weight >= 0 || gate_proj >= 0; }
  bool weighs_outputs() const { return router.scale.size() > 0; }

  struct Saved {
    Routing routing;
    Grouping grouping;
    Tensor scores;    ///< [T, R]
    Tensor gate, up;  ///< [T, R] of an analytical router
    Tensor rows;      ///< [pairs, d] inputs of the experts
    Tensor outputs;   ///< [pairs, d] E_j(x), kept where g or the regression needs them
    FfnBlock::Saved shared;
    std::vector<FfnBlock::Saved> experts;
  };
  /// x += FFN(input); input, x [T, d].
  void forward(const SequencePass& pass, const Tensor& input, Tensor& x, Saved& saved) const;
  /// dinput = the gradient of the input, given dy [T, d] of the output.
  void backward(const SequencePass& pass, const Tensor& input, const Saved& saved, const Tensor& dy, Tensor& dinput) const;

 private:
  void score(const SequencePass& pass, const Tensor& input, Saved& saved) const;
  void router_backward(const SequencePass& pass, const Tensor& input, const Saved& saved, const Tensor& dy,
                       Tensor& dinput) const;
  void score_backward(const SequencePass& pass, const Tensor& input, const Saved& saved, const Tensor& ds,
                      const Tensor& ds_weights, Tensor& dinput) const;
};

}  // namespace cmoe

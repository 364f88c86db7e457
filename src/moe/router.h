#pragma once

#include "backend/backend.h"
#include "moe/routing.h"

namespace cmoe {

/// How scores become a set of experts per token.
enum class Selector { topk, threshold };

/// What the router computes from the FFN input x; always in f32.
///   linear:      s_j = w_j . x + b_j                           (regression to expert output norms)
///   analytical:  s_j = silu(g_j . x) (u_j . x)                 (CMoE v3, section 3.3: rows of the representative neurons)
///   authors:     s_j = |silu(g_j . x) (u_j . x)|, rows of unit norm   (`Router.forward` in the authors' code)
enum class RouterKind { linear, analytical, authors };

/// Chooses the routed experts of each token from its FFN input.
struct Router {
  RouterKind kind = RouterKind::linear;
  Selector selector = Selector::topk;
  int64_t num_experts_per_tok = 0;  ///< A, for topk
  float threshold = 0;              ///< for threshold: experts with s_j + selection_bias_j >= threshold
  Weight weight;                    ///< linear: [R, d]
  Tensor bias;                      ///< linear: [R] f32
  Weight gate_proj, up_proj;        ///< analytical, authors: [R, d]
  Tensor scale;                     ///< u [R] f32, or undefined: output weight 1 + softmax(s)_j u_j (CMoE v3, section 3.4)
  Tensor selection_bias;            ///< b [R] f32, or undefined: added to the scores for selection only

  int64_t num_experts() const { return kind == RouterKind::linear ? weight.out_features() : gate_proj.out_features(); }
};

/// Scores s [T, R] of x [T, d].
Tensor router_scores(const Backend& backend, const Router& router, const Tensor& x);

/// The set of experts of each row of `scores` [T, R], and the factors of their outputs. Ties go to the smaller index.
Routing select_experts(const Router& router, const Tensor& scores);

}  // namespace cmoe

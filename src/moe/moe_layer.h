#pragma once

#include <optional>
#include <vector>

#include "moe/gated_ffn.h"
#include "moe/router.h"
#include "moe/routing.h"

namespace cmoe {

/// Which routed experts this rank holds. Default: all of them.
struct ExpertParallel {
  std::vector<bool> local;  ///< [num_routed_experts]; empty means all

  bool holds(int64_t expert) const { return local.empty() || local[static_cast<size_t>(expert)]; }
};

/// Sees the routing of every MoE layer that runs.
class MoeObserver {
 public:
  virtual ~MoeObserver() = default;
  virtual void on_routing(int64_t layer, const Routing& routing) = 0;
};

/// A carved FFN: y = E_shared(x) + c + sum over the token's experts j, ascending, of g_j E_j(x).
/// Source: CMoE v3, equation for F_MoE; the set of experts is ragged (moe/routing.h).
struct MoeLayer {
  std::optional<GatedFfn> shared;  ///< S * m neurons
  std::vector<GatedFfn> experts;   ///< [R]; undefined where another rank holds the expert
  Router router;                   ///< unused when R = 0 (a statically pruned layer)
  Tensor compensation_bias;        ///< c [d] f32, or undefined
  ExpertParallel parallel;

  /// x += FFN(input); input, x [T, d].
  void add_to(const Backend& backend, int64_t layer, const Tensor& input, Tensor& x, MoeObserver* observer) const;

  int64_t bytes() const;
};

}  // namespace cmoe

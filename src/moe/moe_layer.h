#pragma once

#include <array>
#include <chrono>
#include <memory>
#include <optional>
#include <vector>

#include "moe/expert_parallel.h"
#include "moe/gated_ffn.h"
#include "moe/router.h"
#include "moe/routing.h"

namespace cmoe {

/// What a MoE layer does, one after the other.
enum class MoeStage : size_t {
  route,    ///< scores and the choice of experts
  send,     ///< sizes exchanged, rows packed and sent
  shared,   ///< shared expert and compensation bias, while rows travel
  receive,  ///< rows awaited and grouped by expert
  experts,  ///< this rank's routed experts
  combine,  ///< partial results sent, awaited and added
};
inline constexpr size_t kMoeStages = 6;

/// One piece of tokens through a MoE layer on this rank, when it is done (a call has as many as ExpertParallel::chunks()).
struct MoeCall {
  struct Stage {
    std::chrono::steady_clock::time_point begin;
    double seconds = 0;
  };
  std::array<Stage, kMoeStages> stages{};  ///< by MoeStage; other pieces' stages lie between them
  int64_t tokens = 0;                      ///< of this rank
  int64_t rows_served = 0;                 ///< (token, expert) pairs computed here
  ExchangeReport report;
};

/// Sees every MoE layer that runs.
class MoeObserver {
 public:
  virtual ~MoeObserver() = default;
  virtual void on_routing(int64_t layer, const Routing& routing) = 0;
  /// After the layer; not called for layers without routed experts.
  virtual void on_call(int64_t /*layer*/, const MoeCall& /*call*/) {}
};

/// A carved FFN: y = E_shared(x) + c + sum over the token's experts j, ascending, of g_j E_j(x).
/// Source: CMoE v3, equation for F_MoE; the set of experts is ragged (moe/routing.h).
struct MoeLayer {
  std::optional<GatedFfn> shared;                  ///< S * m neurons
  std::vector<GatedFfn> experts;                   ///< [R]; undefined where only other ranks hold the expert
  Router router;                                   ///< unused when R = 0 (a statically pruned layer)
  Tensor compensation_bias;                        ///< c [d] f32, or undefined
  std::shared_ptr<const ExpertParallel> parallel;  ///< who holds which expert; of all layers of the model

  /// x += FFN(input); input, x [T, d]: route, dispatch, shared expert while rows travel, experts, combine. Collective over
  /// `parallel`'s group. The tokens go in ExpertParallel::chunks() pieces: one is routed, and its experts run, while others'
  /// rows and results are under way. The sum is x + shared + c + experts ascending, each added in f32, so that with f32 on the
  /// wire the result does not depend on ranks, placement, transport or the other rows.
  void add_to(const Backend& backend, int64_t layer, const Tensor& input, Tensor& x, MoeObserver* observer) const;

  /// Of the weights this rank holds.
  int64_t bytes() const;

 private:
  struct Piece;
  void send(const Backend& backend, int64_t layer, Piece& piece, MoeObserver* observer) const;
  void add_shared(const Backend& backend, Piece& piece) const;
  void run_experts(const Backend& backend, int64_t layer, Piece& piece) const;
};

}  // namespace cmoe

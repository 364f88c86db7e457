#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "train/trained_model.h"

namespace cmoe {

/// How the selection bias b follows the loads p_j (share of the pairs that expert j took):
///   sign:          b_j -= gamma sign(p_j - 1 / R)              (CMoE v3, section 3.4; gamma 1e-3)
///   proportional:  b_j -= gamma (p_j R - 1)
enum class BalanceRule : uint8_t { none, sign, proportional };
BalanceRule parse_balance_rule(const std::string& text);

struct BalanceOptions {
  BalanceRule rule = BalanceRule::sign;
  double gamma = 1e-3;
  double threshold_rate = 0.1;  ///< how far a step moves a threshold towards the step's own quantile
};

/// Loads of one step, over all ranks.
struct StepLoads {
  std::vector<double> max_over_mean;  ///< [layers]
  double mean_active = 0;             ///< routed experts per token, mean over layers

  double worst() const;
};

/// After a step: adds up the loads of all ranks, moves each layer's b, and, where experts are chosen by threshold, moves the
/// threshold to where the mean number of active experts is the model's budget: the running (1 - A / R) quantile of s + b.
/// Counts travel and nothing else, so that any number of ranks gives the same values. Collective.
StepLoads balance_routers(const BalanceOptions& options, const TrainedModel::Routed& routed, int64_t tokens_of_step,
                          TrainedModel& model, Communicator& comm);

}  // namespace cmoe

#include "train/balance.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "comm/kth_largest.h"

namespace cmoe {

BalanceRule parse_balance_rule(const std::string& text) {
  if (text == "none") return BalanceRule::none;
  if (text == "sign") return BalanceRule::sign;
  if (text == "proportional") return BalanceRule::proportional;
  fail("balance: '{}' is unknown; expected none, sign or proportional", text);
}

double StepLoads::worst() const {
  double worst = 0;
  for (double ratio : max_over_mean) worst = std::max(worst, ratio);
  return worst;
}

StepLoads balance_routers(const BalanceOptions& options, const TrainedModel::Routed& routed, int64_t tokens_of_step,
                          TrainedModel& model, Communicator& comm) {
  StepLoads step;
  const int64_t experts = model.num_routed_experts(), layers = model.num_layers();
  if (experts == 0) return step;
  std::vector<int64_t> loads = routed.loads;
  loads.resize(static_cast<size_t>(layers * experts));  // a rank without sequences has counted nothing
  comm.all_reduce_sum(loads);
  const int64_t budget = model.base().config().moe->num_experts_per_tok;
  for (int64_t l = 0; l < layers; ++l) {
    const std::span<const int64_t> load(&loads[static_cast<size_t>(l * experts)], static_cast<size_t>(experts));
    int64_t total = 0;
    for (int64_t count : load) total += count;
    const double mean = static_cast<double>(total) / static_cast<double>(experts);
    const double most = static_cast<double>(*std::max_element(load.begin(), load.end()));
    step.max_over_mean.push_back(total > 0 ? most / mean : 1);
    step.mean_active += static_cast<double>(total) / static_cast<double>(tokens_of_step * layers);

    Router& router = model.router(l);
    for (int64_t j = 0; options.rule != BalanceRule::none && router.selection_bias.size() > 0 && total > 0 && j < experts;
         ++j) {
      const double excess = static_cast<double>(load[static_cast<size_t>(j)]) / mean - 1;
      const double direction = options.rule == BalanceRule::sign ? (excess > 0) - (excess < 0) : excess;
      router.selection_bias.data<float>()[j] -= static_cast<float>(options.gamma * direction);
    }
    if (router.selector != Selector::threshold || routed.scores.empty()) continue;
    const int64_t wanted = std::clamp<int64_t>(budget * tokens_of_step, 1, experts * tokens_of_step);
    const float quantile = kth_largest(routed.scores[static_cast<size_t>(l)], wanted, comm);
    router.threshold += static_cast<float>(options.threshold_rate) * (quantile - router.threshold);
  }
  return step;
}

}  // namespace cmoe

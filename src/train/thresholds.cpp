// Thresholds that keep the budget of active experts: what an adapter is written with.
#include <algorithm>

#include "comm/kth_largest.h"
#include "train/trained_model.h"

namespace cmoe {

std::vector<float> TrainedModel::thresholds() const {
  std::vector<float> thresholds;
  for (int64_t l = 0; num_routed_experts() > 0 && l < num_layers(); ++l) thresholds.push_back(router(l).threshold);
  return thresholds;
}

void TrainedModel::set_thresholds(const std::vector<float>& thresholds) {
  for (size_t l = 0; l < thresholds.size(); ++l) router(static_cast<int64_t>(l)).threshold = thresholds[l];
}

bool TrainedModel::calibrate_thresholds(std::span<const TrainingSequence> sequences, Communicator& comm,
                                        const std::function<bool()>& stop) {
  if (num_routed_experts() == 0 || router(0).selector != Selector::threshold || sequences.empty()) return true;
  const std::vector<float> before = thresholds();
  struct Pass {
    const Segments* segments;
    Tensor x;
  };
  const GroupPass group = group_pass({}, nullptr, 1);
  const auto ranks = static_cast<size_t>(comm.size()), rank = static_cast<size_t>(comm.rank());
  const TrainingSequence none;
  std::vector<Pass> passes;  // of this rank's sequences; every rank has as many, the last may be of no tokens
  int64_t tokens = 0;
  for (const TrainingSequence& sequence : sequences) tokens += static_cast<int64_t>(sequence.tokens.size());
  for (size_t round = 0; round < sequences.size(); round += ranks) {
    const TrainingSequence& mine = round + rank < sequences.size() ? sequences[round + rank] : none;
    passes.push_back({&mine.segments, embed(mine.tokens, mine.segments)});
  }
  const int64_t budget = base_.config().moe->num_experts_per_tok;
  for (int64_t l = 0; l < num_layers(); ++l) {
    if (stop && stop()) {
      set_thresholds(before);
      return false;
    }
    // Between the two halves of a layer only x is kept of a sequence: its FFN's input is made twice.
    std::vector<float> values;
    for (Pass& pass : passes) {
      Saved saved;
      forward_attention(group, *pass.segments, l, pass.x, saved);
      MoeBlock::Saved scored;
      moe(l).score(group.own, saved.ffn_input, scored);
      append_scores(l, scored.scores, values);
    }
    const int64_t wanted = std::clamp<int64_t>(budget * tokens, 1, num_routed_experts() * tokens);
    router(l).threshold = kth_largest(values, wanted, comm);
    for (Pass& pass : passes) {
      Saved saved;
      norm_for_ffn(group, l, pass.x, saved);
      forward_ffn(group, l, pass.x, saved);
    }
  }
  return true;
}

}  // namespace cmoe

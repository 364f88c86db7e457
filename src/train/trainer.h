#pragma once

#include <array>
#include <memory>
#include <span>
#include <vector>

#include "train/balance.h"
#include "train/gradient_sum.h"
#include "train/optimizer.h"
#include "train/trained_model.h"

namespace cmoe {

struct TrainerOptions {
  int64_t batch_size = 2;  ///< sequences of a step, over all ranks
  uint64_t seed = 0;
  double dropout = 0.1;
  OptimizerOptions optimizer;
  BalanceOptions balance;
  TrainedModel::LossOptions loss;
};

/// What one step did; the same on all ranks.
struct StepReport {
  int64_t step = 0;  ///< from 1
  double loss = 0;   ///< weighted sum of the parts, per target
  double nll = 0, kl = 0, hidden = 0;
  double grad_norm = 0;  ///< before clipping
  double lr_factor = 0;
  int64_t tokens = 0;
  StepLoads loads;
};

/// Trained values that some ranks hold alike. Each of these ranks owns a slice: of the sum of gradients and of Adam's moments.
struct TrainedPart {
  TrainedPart(ParameterSet& held, Communicator& holders, const OptimizerOptions& options)
      : parameters(held), sum(held, holders), adam(options, sum.slice().first, sum.slice().second) {}

  ParameterSet& parameters;
  GradientSum sum;
  Adam adam;
};

/// Trains a TrainedModel on sequences in order, `batch_size` a step; the sequences of a step go round the ranks. Consecutive
/// ranks form the groups that share the model's routed experts; an expert's adapters are trained where it is held, by the ranks
/// of the same number in all groups together. Losses and values are the same for any number of ranks, size of groups and
/// placement, to the bit with f32 weights: every sum over sequences is in their order.
class Trainer {
 public:
  /// @param model, teacher, comm  must outlive this; the model's values are the same on all ranks that hold them.
  /// @throws Error  when comm's ranks are not whole groups of the model. Collective.
  Trainer(TrainedModel& model, const TrainedModel::Teacher& teacher, const TrainerOptions& options,
          std::span<const TrainingSequence> sequences, Communicator& comm);

  int64_t steps() const;
  int64_t steps_done() const { return parts_[0].adam.steps(); }
  /// The next step. Collective. @throws Error naming step and layer where a value is not finite: nothing was changed then.
  StepReport step();

  const TrainerOptions& options() const { return options_; }
  /// What all ranks hold, and this rank's experts.
  std::span<TrainedPart> parts() { return parts_; }
  TrainedModel& model() { return model_; }

 private:
  SequenceLoss add_round(std::span<const TrainingSequence> batch, int64_t first, int64_t round, double token_weight,
                         TrainedModel::Routed& routed);

  TrainedModel& model_;
  TrainedModel::Teacher teacher_;
  TrainerOptions options_;
  std::span<const TrainingSequence> sequences_;
  Communicator& comm_;
  std::unique_ptr<Communicator> replicas_;  ///< the ranks that hold the same experts, one of each group
  std::vector<TrainedPart> parts_;
  TrainedModel::Gradients gradients_;  ///< of one round
};

/// Mean loss per target of `sequences`, without dropout; the same for any number of ranks, which are whole groups. Collective.
double evaluate_loss(const TrainedModel& model, std::span<const TrainingSequence> sequences, Communicator& comm);

}  // namespace cmoe

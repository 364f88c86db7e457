#pragma once

#include <array>
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

/// A training sequence: tokens and the documents in it.
struct TrainingSequence {
  std::span<const int32_t> tokens;
  Segments segments;
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

/// Trains a TrainedModel on sequences in order, `batch_size` a step; the sequences of a step go round the ranks. Losses and
/// values are the same for any number of ranks, to the bit with f32 weights: every sum over sequences is in their order.
class Trainer {
 public:
  /// @param model, teacher, comm  must outlive this; the model's values are the same on all ranks.
  Trainer(TrainedModel& model, const TrainedModel::Teacher& teacher, const TrainerOptions& options,
          std::span<const TrainingSequence> sequences, Communicator& comm);

  int64_t steps() const;
  int64_t steps_done() const { return adam_.steps(); }
  /// The next step. Collective. @throws Error naming step and layer where a value is not finite: nothing was changed then.
  StepReport step();

  const TrainerOptions& options() const { return options_; }
  Adam& adam() { return adam_; }
  const GradientSum& gradient_sum() const { return sum_; }
  TrainedModel& model() { return model_; }

 private:
  TrainedModel& model_;
  TrainedModel::Teacher teacher_;
  TrainerOptions options_;
  std::span<const TrainingSequence> sequences_;
  Communicator& comm_;
  GradientSum sum_;
  Adam adam_;
  Tensor gradient_;  ///< of one sequence
};

/// Mean loss per target of `sequences`, without dropout; the same for any number of ranks. Collective.
double evaluate_loss(const TrainedModel& model, std::span<const TrainingSequence> sequences, Communicator& comm);

}  // namespace cmoe

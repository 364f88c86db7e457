#include "train/trainer.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace cmoe {
namespace {

// Loss parts of one sequence as they travel: its number decides where they are added.
using Parts = std::array<double, 4>;  // nll, kl, hidden, targets

// Every rank's parts in the order of the sequences: rank r holds the r-th, the (r + size)-th, ...
std::vector<Parts> in_sequence_order(const std::vector<Parts>& mine, int64_t sequences, Communicator& comm) {
  const std::vector<Parts> all = comm.all_gather_v<Parts>(mine);
  std::vector<Parts> ordered(static_cast<size_t>(sequences));
  size_t at = 0;
  for (int64_t rank = 0; rank < comm.size(); ++rank) {
    for (int64_t s = rank; s < sequences; s += comm.size()) ordered[static_cast<size_t>(s)] = all[at++];
  }
  return ordered;
}

int64_t targets_of(const TrainingSequence& sequence) {
  int64_t targets = 0;
  for (int64_t rows : sequence.segments.rows) targets += rows - 1;
  return targets;
}

}  // namespace

Trainer::Trainer(TrainedModel& model, const TrainedModel::Teacher& teacher, const TrainerOptions& options,
                 std::span<const TrainingSequence> sequences, Communicator& comm)
    : model_(model),
      teacher_(teacher),
      options_(options),
      sequences_(sequences),
      comm_(comm),
      sum_(model.parameters().size(), comm),
      adam_(options.optimizer, sum_.slice().first, sum_.slice().second),
      gradient_(DType::f32, {model.parameters().size()}) {
  CMOE_CHECK(options.batch_size >= 1, "finetune: batch-size {}, expected at least 1", options.batch_size);
  CMOE_CHECK(!sequences.empty(), "finetune: no training sequence; give more text");
  for (const TrainingSequence& sequence : sequences)
    CMOE_CHECK(targets_of(sequence) > 0, "finetune: a training sequence of {} tokens has nothing to predict",
               sequence.tokens.size());
  if (teacher.model) {
    const ModelConfig &student = model.base().config(), &dense = teacher.model->config();
    CMOE_CHECK(dense.vocab_size == student.vocab_size, "teacher: has a vocabulary of {}, expected the model's {}",
               dense.vocab_size, student.vocab_size);
    CMOE_CHECK(
        !teacher.hidden || (dense.hidden_size == student.hidden_size && dense.num_hidden_layers == student.num_hidden_layers),
        "teacher: has {} layers of {}, expected the model's {} of {} to match hidden states", dense.num_hidden_layers,
        dense.hidden_size, student.num_hidden_layers, student.hidden_size);
  }
}

int64_t Trainer::steps() const {
  return (static_cast<int64_t>(sequences_.size()) + options_.batch_size - 1) / options_.batch_size;
}

StepReport Trainer::step() {
  const int64_t step = adam_.steps(), first = step * options_.batch_size;
  const int64_t count = std::min(options_.batch_size, static_cast<int64_t>(sequences_.size()) - first);
  if (count <= 0) fail_internal("trainer: step {} of {}", step + 1, steps());
  const auto batch = sequences_.subspan(static_cast<size_t>(first), static_cast<size_t>(count));
  StepReport report{.step = step + 1, .lr_factor = schedule_factor(options_.optimizer, step, steps())};
  int64_t targets = 0;
  for (const TrainingSequence& sequence : batch) {
    targets += targets_of(sequence);
    report.tokens += static_cast<int64_t>(sequence.tokens.size());
  }

  TrainedModel::Routed routed;
  const bool threshold = model_.num_routed_experts() > 0 && model_.router(0).selector == Selector::threshold;
  if (threshold && model_.parts().router_bias) routed.scores.resize(static_cast<size_t>(model_.num_layers()));
  std::vector<Parts> mine;
  sum_.clear();
  // A round: one sequence on each rank, then their gradients are added in order.
  for (int64_t round = 0; round < count; round += comm_.size()) {
    const int64_t sequences = std::min<int64_t>(comm_.size(), count - round);
    if (comm_.rank() < sequences) {
      const int64_t number = round + comm_.rank();
      const TrainingSequence& sequence = batch[static_cast<size_t>(number)];
      std::fill(gradient_.span<float>().begin(), gradient_.span<float>().end(), 0.0f);
      const uint64_t key = random_bits(options_.seed, static_cast<uint64_t>(first + number));
      try {
        const SequenceLoss loss =
            model_.add_gradient(sequence.tokens, sequence.segments, options_.loss, teacher_, 1.0 / static_cast<double>(targets),
                                key, static_cast<float>(options_.dropout), gradient_, routed);
        mine.push_back({loss.nll, loss.kl, loss.hidden, static_cast<double>(loss.targets)});
      } catch (const Error& error) {
        throw Error(fmt::format("step {}, sequence {}: {}", report.step, first + number, error.what()), error.code());
      }
    }
    sum_.add(gradient_, sequences);
  }

  for (const auto& [nll, kl, hidden, unused] : in_sequence_order(mine, count, comm_)) {
    report.nll += nll;
    report.kl += kl;
    report.hidden += hidden;
  }
  for (double* part : {&report.nll, &report.kl, &report.hidden}) *part /= static_cast<double>(targets);
  const TrainedModel::LossOptions& loss = options_.loss;
  report.loss = loss.nll * report.nll + loss.kl * loss.temperature * loss.temperature * report.kl + loss.hidden * report.hidden;

  report.grad_norm = sum_.norm();
  CMOE_CHECK(std::isfinite(report.grad_norm), "step {}: the gradient is not finite; lower the learning rate", report.step);
  const double clip = options_.optimizer.clip;
  const double scale = clip > 0 && report.grad_norm > clip ? clip / report.grad_norm : 1.0;
  adam_.step(model_.parameters(), sum_.sum(), scale, report.lr_factor);
  sum_.gather(model_.parameters().values());
  report.loads = balance_routers(options_.balance, routed, report.tokens, model_, comm_);
  model_.pack();
  return report;
}

double evaluate_loss(const TrainedModel& model, std::span<const TrainingSequence> sequences, Communicator& comm) {
  std::vector<Parts> mine;
  for (size_t s = static_cast<size_t>(comm.rank()); s < sequences.size(); s += static_cast<size_t>(comm.size())) {
    const SequenceLoss loss = model.evaluate(sequences[s].tokens, sequences[s].segments);
    mine.push_back({loss.nll, 0, 0, static_cast<double>(loss.targets)});
  }
  double nll = 0, targets = 0;
  for (const Parts& parts : in_sequence_order(mine, static_cast<int64_t>(sequences.size()), comm)) {
    nll += parts[0];
    targets += parts[3];
  }
  return nll / targets;
}

}  // namespace cmoe

#include "train/trainer.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/random.h"

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

void set_zero(const Tensor& x) { std::fill(x.span<float>().begin(), x.span<float>().end(), 0.0f); }

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
      replicas_(comm.split(comm.rank() % model.group_size())),
      gradients_(model.make_gradients()) {
  const int group = model.group_size(), number = model.parallel() ? model.parallel()->rank() : 0;
  CMOE_CHECK(
      comm.size() % group == 0 && comm.rank() % group == number,
      "finetune: rank {} of {} has number {} in a group of {} that share experts; expected whole groups of consecutive ranks",
      comm.rank(), comm.size(), number, group);
  parts_.reserve(2);
  parts_.emplace_back(model.parameters(), comm, options.optimizer);
  parts_.emplace_back(model.expert_parameters(), *replicas_, options.optimizer);
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

// One sequence on each rank, those beyond the batch's have none; then the sequences' gradients are added in their order.
SequenceLoss Trainer::add_round(std::span<const TrainingSequence> batch, int64_t first, int64_t round, double token_weight,
                                TrainedModel::Routed& routed) {
  const int64_t ranks = comm_.size(), group = model_.group_size(), rank = comm_.rank();
  const int64_t sequences = std::min<int64_t>(ranks, static_cast<int64_t>(batch.size()) - round);
  TrainedModel::Dropout dropout{static_cast<float>(options_.dropout), {}};
  for (int64_t source = rank / group * group; source < (rank / group + 1) * group; ++source)
    dropout.keys.push_back(random_bits(options_.seed, static_cast<uint64_t>(first + round + source)));
  set_zero(gradients_.parameters);
  for (const Tensor& gradient : gradients_.experts) set_zero(gradient);

  SequenceLoss loss;
  const TrainingSequence none;
  const TrainingSequence& mine = rank < sequences ? batch[static_cast<size_t>(round + rank)] : none;
  try {
    loss = model_.add_gradient(mine.tokens, mine.segments, options_.loss, teacher_, token_weight, dropout, gradients_, routed);
  } catch (const Error& error) {
    throw Error(fmt::format("step {}, sequence {}: {}", steps_done() + 1, first + round + rank, error.what()), error.code());
  }

  std::vector<int64_t> of_rank, of_group;
  for (int64_t r = 0; r < ranks; ++r) of_rank.push_back(r < sequences ? 1 : 0);
  for (int64_t g = 0; g < ranks / group; ++g) of_group.push_back(std::clamp<int64_t>(sequences - g * group, 0, group));
  parts_[0].sum.add(std::span(&gradients_.parameters, 1), of_rank);
  parts_[1].sum.add(gradients_.experts, of_group);
  return loss;
}

StepReport Trainer::step() {
  const int64_t step = steps_done(), first = step * options_.batch_size;
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
  for (TrainedPart& part : parts_) part.sum.clear();
  for (int64_t round = 0; round < count; round += comm_.size()) {
    const SequenceLoss loss = add_round(batch, first, round, 1.0 / static_cast<double>(targets), routed);
    if (round + comm_.rank() < count) mine.push_back({loss.nll, loss.kl, loss.hidden, static_cast<double>(loss.targets)});
  }

  for (const auto& [nll, kl, hidden, unused] : in_sequence_order(mine, count, comm_)) {
    report.nll += nll;
    report.kl += kl;
    report.hidden += hidden;
  }
  for (double* part : {&report.nll, &report.kl, &report.hidden}) *part /= static_cast<double>(targets);
  const TrainedModel::LossOptions& loss = options_.loss;
  report.loss = loss.nll * report.nll + loss.kl * loss.temperature * loss.temperature * report.kl + loss.hidden * report.hidden;

  std::vector<GradientSum::ChunkSquare> squares;
  for (const TrainedPart& part : parts_) part.sum.append_squares(squares);
  report.grad_norm = norm_of(squares, comm_);
  CMOE_CHECK(std::isfinite(report.grad_norm), "step {}: the gradient is not finite; lower the learning rate", report.step);
  const double clip = options_.optimizer.clip;
  const double scale = clip > 0 && report.grad_norm > clip ? clip / report.grad_norm : 1.0;
  for (TrainedPart& part : parts_) {
    part.adam.step(part.parameters, part.sum.sum(), scale, report.lr_factor);
    part.sum.gather(part.parameters.values());
  }
  report.loads = balance_routers(options_.balance, routed, report.tokens, model_, comm_);
  model_.pack();
  return report;
}

double evaluate_loss(const TrainedModel& model, std::span<const TrainingSequence> sequences, Communicator& comm) {
  std::vector<Parts> mine;
  const auto ranks = static_cast<size_t>(comm.size()), rank = static_cast<size_t>(comm.rank());
  const TrainingSequence none;
  for (size_t round = 0; round < sequences.size(); round += ranks) {
    const bool busy = round + rank < sequences.size();
    const TrainingSequence& sequence = busy ? sequences[round + rank] : none;
    const SequenceLoss loss = model.evaluate(sequence.tokens, sequence.segments);
    if (busy) mine.push_back({loss.nll, 0, 0, static_cast<double>(loss.targets)});
  }
  double nll = 0, targets = 0;
  for (const Parts& parts : in_sequence_order(mine, static_cast<int64_t>(sequences.size()), comm)) {
    nll += parts[0];
    targets += parts[3];
  }
  return nll / targets;
}

}  // namespace cmoe

// Training steps over ranks, saved states, balance and optimiser.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "support/files.h"
#include "support/world.h"
#include "train/training_run.h"
#include "train/training_state.h"

namespace cmoe {
namespace {

using ::testing::HasSubstr;

// The last step has 2 sequences, so with 3 and 4 ranks some have none.
TEST(Trainer, AnyNumberOfRanksGivesTheSameBits) {
  Communicator& world = test_world();
  const auto alone = world.split(world.rank());
  for (const char* name : {"tiny-cmoe-healed", "tiny-cmoe-threshold"}) {
    SCOPED_TRACE(name);
    TrainingRun together(name, world), lone(name, *alone);
    ASSERT_EQ(together.trainer->steps(), 5);
    const double before = evaluate_loss(lone.tiny.trained, lone.sequences, *alone);
    for (int step = 0; step < 5; ++step) {
      const StepReport a = together.trainer->step(), b = lone.trainer->step();
      EXPECT_EQ(a.loss, b.loss);
      EXPECT_EQ(a.grad_norm, b.grad_norm);
      EXPECT_EQ(a.loads.max_over_mean, b.loads.max_over_mean);
    }
    EXPECT_EQ(together.values(), lone.values());
    const double after = evaluate_loss(together.tiny.trained, together.sequences, world);
    EXPECT_EQ(after, evaluate_loss(lone.tiny.trained, lone.sequences, *alone));
    EXPECT_LT(after, before);
  }
}

TEST(TrainingState, ResumesToTheSameBitsOnAnyNumberOfRanks) {
  Communicator& world = test_world();
  const TempFolder temporary;
  const std::string folder = shared_folder(temporary);
  TrainingState state(folder, "options\n", world);
  EXPECT_FALSE(state.newest());
  TrainingRun whole("tiny-cmoe-threshold", world);
  for (int step = 1; step <= 5; ++step) {
    whole.trainer->step();
    if (step <= 3) state.save(*whole.trainer);
  }
  EXPECT_EQ(state.newest(), 3);
  if (world.rank() == 0) {
    EXPECT_FALSE(std::filesystem::exists(folder + "/checkpoint-00000001"));  // the two newest stay
    EXPECT_TRUE(std::filesystem::exists(folder + "/checkpoint-00000002"));
  }
  const auto alone = world.split(world.rank());
  for (Communicator* comm : {&world, alone.get()}) {
    TrainingRun resumed("tiny-cmoe-threshold", *comm);
    TrainingState(folder, "options\n", *comm).load(*resumed.trainer);
    EXPECT_EQ(resumed.trainer->steps_done(), 3);
    while (resumed.trainer->steps_done() < 5) resumed.trainer->step();
    EXPECT_EQ(resumed.values(), whole.values());
  }
  world.barrier();
}

TEST(TrainingState, RefusesWhatIsDamagedOrNotItsOwn) {
  const auto comm = test_world().split(test_world().rank());
  const TempFolder folder;
  TrainingRun run("tiny-cmoe-healed", *comm);
  TrainingState state(folder.path().string(), "lr 1\n", *comm);
  expect_error([&] { state.load(*run.trainer); }, "holds no saved state");
  run.trainer->step();
  state.save(*run.trainer);
  expect_error([&] { TrainingState(folder.path().string(), "lr 2\n", *comm).load(*run.trainer); },
               "was saved by a run with other options", "expected\nlr 2", "found\nlr 1");
  TrainingRun other("tiny-cmoe-healed", *comm, {}, {.rank = 3});
  expect_error([&] { state.load(*other.trainer); }, "other trained parameters");

  const std::filesystem::path file = folder / "checkpoint-00000001/state-00001-of-00001.safetensors";
  const std::string bytes = read_bytes(file);
  std::string flipped = bytes;
  flipped[flipped.size() / 2] ^= 1;
  write_bytes(file, flipped);
  expect_error([&] { state.load(*run.trainer); }, "state-00001-of-00001.safetensors: its SHA-256 is not", "state before");
  write_bytes(file, bytes.substr(0, bytes.size() - 9));
  expect_error([&] { state.load(*run.trainer); }, "bytes, expected");
  std::filesystem::remove(file);
  expect_error([&] { state.load(*run.trainer); }, "state-00001-of-00001.safetensors: missing");
  write_bytes(file, bytes);
  EXPECT_NO_THROW(state.load(*run.trainer));
}

TEST(TrainingState, UnfinishedFoldersAreNoStates) {
  const auto comm = test_world().split(test_world().rank());
  const TempFolder folder;
  std::filesystem::create_directories(folder / "checkpoint-00000009.tmp-abcdef");
  TrainingState state(folder.path().string(), "", *comm);
  EXPECT_FALSE(state.newest());
  TrainingRun run("tiny-cmoe-healed", *comm);
  run.trainer->step();
  state.save(*run.trainer);
  EXPECT_EQ(state.newest(), 1);
  EXPECT_FALSE(std::filesystem::exists(folder / "checkpoint-00000009.tmp-abcdef"));
}

TEST(Balance, SignAndProportionalRules) {
  const auto comm = test_world().split(test_world().rank());
  TinyModel tiny("tiny-cmoe-healed");
  const int64_t experts = tiny.trained.num_routed_experts(), layers = tiny.trained.num_layers();
  TrainedModel::Routed routed;
  for (int64_t l = 0; l < layers; ++l) {
    for (int64_t j = 0; j < experts; ++j) routed.loads.push_back(j == 0 ? 30 : j == 1 ? 10 : 20);
  }
  for (BalanceRule rule : {BalanceRule::sign, BalanceRule::proportional, BalanceRule::none}) {
    const Tensor before = tiny.trained.router(1).selection_bias.clone();
    const StepLoads loads = balance_routers({.rule = rule, .gamma = 0.01}, routed, 20 * experts / 2, tiny.trained, *comm);
    const float* after = tiny.trained.router(1).selection_bias.data<float>();
    const float step = rule == BalanceRule::sign ? 0.01f : rule == BalanceRule::proportional ? 0.005f : 0;
    EXPECT_NEAR(after[0] - before.data<float>()[0], -step, 1e-7);
    EXPECT_NEAR(after[1] - before.data<float>()[1], step, 1e-7);
    EXPECT_EQ(after[2], before.data<float>()[2]);
    EXPECT_DOUBLE_EQ(loads.worst(), 1.5);
    EXPECT_DOUBLE_EQ(loads.mean_active, 2);
  }
}

// Scores drift while training; the threshold has to follow until the mean number of active experts is the budget.
TEST(Balance, ThresholdKeepsTheBudget) {
  const auto comm = test_world().split(test_world().rank());
  TrainerOptions options;
  options.balance = {.threshold_rate = 0.5};
  TrainingRun run("tiny-cmoe-threshold", *comm, options);
  for (int64_t l = 0; l < run.tiny.trained.num_layers(); ++l) run.tiny.trained.router(l).threshold += 1.0f;
  const auto budget = static_cast<double>(run.tiny.base->config().moe->num_experts_per_tok);
  const double before = run.trainer->step().loads.mean_active;
  EXPECT_GT(std::abs(before - budget), 0.2 * budget);
  double after = 0;
  while (run.trainer->steps_done() < run.trainer->steps()) after = run.trainer->step().loads.mean_active;
  EXPECT_NEAR(after, budget, 0.15 * budget);  // 48 tokens of the last step carry chance
}

TEST(Optimizer, EqualsAdamInDouble) {
  ParameterSet parameters;
  parameters.add("a", {3}, ParameterGroup::lora);
  parameters.add("b", {2}, ParameterGroup::router_scale);
  parameters.allocate();
  const OptimizerOptions options{.learning_rate = {0.1, 0.2, 0}, .weight_decay = 0.05};
  Adam adam(options, 0, 5);
  double w[5] = {}, m[5] = {}, v[5] = {};
  for (int i = 0; i < 5; ++i) parameters.values().data<float>()[i] = static_cast<float>(w[i] = 0.5 * i - 1);
  for (int t = 1; t <= 4; ++t) {
    Tensor gradient(DType::f32, {5});
    for (int i = 0; i < 5; ++i) gradient.data<float>()[i] = static_cast<float>(std::sin(i + 3 * t));
    adam.step(parameters, gradient, 0.5, 0.9);
    for (int i = 0; i < 5; ++i) {
      const double g = 0.5 * std::sin(i + 3 * t), lr = (i < 3 ? 0.1 : 0.2) * 0.9;
      m[i] = 0.9 * m[i] + 0.1 * g;
      v[i] = 0.95 * v[i] + 0.05 * g * g;
      w[i] -= lr * (m[i] / (1 - std::pow(0.9, t)) / (std::sqrt(v[i] / (1 - std::pow(0.95, t))) + 1e-8) + 0.05 * w[i]);
      EXPECT_NEAR(parameters.values().data<float>()[i], w[i], 2e-6);
    }
  }
}

TEST(Optimizer, Schedules) {
  OptimizerOptions options{.schedule = ScheduleKind::cosine, .warmup_steps = 4};
  EXPECT_DOUBLE_EQ(schedule_factor(options, 0, 12), 0.2);
  EXPECT_DOUBLE_EQ(schedule_factor(options, 4, 12), 1);
  EXPECT_NEAR(schedule_factor(options, 8, 12), 0.5, 1e-12);
  EXPECT_GT(schedule_factor(options, 11, 12), 0);
  options.schedule = ScheduleKind::constant;
  EXPECT_DOUBLE_EQ(schedule_factor(options, 11, 12), 1);
}

TEST(GradientSum, SlicesCoverAndNormsAgree) {
  for (int64_t size : {0, 1, 4095, 4096, 4097, 100000}) {
    ParameterSet parameters;
    parameters.add("a", {size}, ParameterGroup::lora);
    parameters.add("b", {100}, ParameterGroup::lora);
    const std::vector<int64_t> chunks = chunk_begins(parameters);
    EXPECT_TRUE(std::is_sorted(chunks.begin(), chunks.end()));
    for (int ranks : {1, 2, 3, 7}) {
      int64_t at = 0;
      for (int r = 0; r < ranks; ++r) {
        const auto [begin, end] = slice_of(chunks, r, ranks);
        EXPECT_EQ(begin, at);
        EXPECT_TRUE(std::binary_search(chunks.begin(), chunks.end(), end));
        EXPECT_LE(end - begin, parameters.size() / ranks + kSumChunk);
        at = end;
      }
      EXPECT_EQ(at, parameters.size());
    }
  }
}

TEST(Trainer, RefusesAnotherTeacher) {
  TinyModel tiny("tiny-cmoe-healed");
  const Transformer teacher(open_checkpoint(kModels + "tiny-llama"), make_cpu_backend(), DType::f32);
  const std::vector<int32_t> ids(8, 1);
  const std::vector<TrainingSequence> sequences{{ids, whole_sequence(8)}};
  expect_error([&] { Trainer(tiny.trained, {.model = &teacher, .logits = true}, {}, sequences, test_world()); },
               "teacher: has a vocabulary of 384, expected the model's 61");
}

}  // namespace
}  // namespace cmoe

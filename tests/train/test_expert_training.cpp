// Training with the routed experts spread over ranks, against the same training where every rank holds all of them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>

#include "train/adapter_files.h"
#include "train/training_run.h"
#include "train/training_state.h"

namespace cmoe {
namespace {

enum class Spread { contiguous, balanced, last_rank_has_all };

// Groups of `size` consecutive ranks of `world`, their experts spread.
struct Groups {
  Groups(const std::string& model, Communicator& world, int size, Spread spread, DispatcherKind kind)
      : group(world.split(world.rank() / size)) {
    const ModelConfig config = open_checkpoint(kModels + model).config;
    const auto routed = static_cast<int32_t>(config.moe->num_routed_experts());
    std::vector<ExpertPlacement> placement;
    for (int64_t l = 0; l < config.num_hidden_layers; ++l) {
      std::vector<double> load;
      for (int32_t e = 0; e < routed; ++e) load.push_back(static_cast<double>((e * 5 + l * 3) % 7));
      placement.push_back(
          spread == Spread::contiguous ? ExpertPlacement::contiguous(routed, size)
          : spread == Spread::balanced
              ? ExpertPlacement::balanced(load, size)
              : ExpertPlacement::of(std::vector<std::vector<int>>(static_cast<size_t>(routed), {size - 1}), size));
    }
    parallel = std::make_shared<ExpertParallel>(*group, placement, DispatcherOptions{.kind = kind});
  }

  std::unique_ptr<Communicator> group;
  std::shared_ptr<const ExpertParallel> parallel;
};

std::vector<int> divisors(int n) {
  std::vector<int> all;
  for (int d = 1; d <= n; ++d) {
    if (n % d == 0) all.push_back(d);
  }
  return all;
}

// Steps of 5 and 2 sequences: on every number of ranks but 1 some rank has none in some round.
TEST(ExpertTraining, AnySpreadGivesTheSameBits) {
  Communicator& world = test_world();
  const auto alone = world.split(world.rank());
  const TrainedParts parts{.rank = 3, .expert_rank = 2, .router_weights = true};
  const auto run = [&](const std::string& name, Communicator& comm, bool recompute,
                       std::shared_ptr<const ExpertParallel> experts) {
    TrainerOptions options;
    options.loss.recompute = recompute;
    return std::make_unique<TrainingRun>(name, comm, options, parts, std::move(experts), 7);
  };
  int number = 0;
  for (const std::string name : {"tiny-cmoe-healed", "tiny-cmoe-threshold", "tiny-cmoe-authors"}) {
    const auto lone = run(name, *alone, false, nullptr);
    const StepReport expected[] = {lone->trainer->step(), lone->trainer->step()};
    const double expected_nll = evaluate_loss(lone->tiny.trained, lone->sequences, *alone);
    const std::vector<float> expected_values = lone->values();
    for (int size : divisors(world.size())) {
      const auto spread = static_cast<Spread>(number % 3);
      const auto kind =
          std::array{DispatcherKind::automatic, DispatcherKind::all_to_all, DispatcherKind::all_gather}[number % 3];
      SCOPED_TRACE(fmt::format("{}, groups of {}, spread {}", name, size, number % 3));
      const Groups groups(name, world, size, spread, kind);
      const auto together = run(name, world, number % 2 == 0, groups.parallel);
      for (const StepReport& one : expected) {
        const StepReport report = together->trainer->step();
        EXPECT_EQ(report.loss, one.loss);
        EXPECT_EQ(report.grad_norm, one.grad_norm);
        EXPECT_EQ(report.loads.max_over_mean, one.loads.max_over_mean);
      }
      const std::vector<float> values = together->values();
      if (groups.parallel->rank() == 0) {
        EXPECT_EQ(values, expected_values);
      }
      EXPECT_EQ(evaluate_loss(together->tiny.trained, together->sequences, world), expected_nll);
      ++number;
    }
  }
}

// After steps with dropout the routers see other inputs than an adapter's user: the calibrated thresholds meet the budget
// there.
TEST(ExpertTraining, CalibratedThresholdsMeetTheBudget) {
  Communicator& world = test_world();
  const auto alone = world.split(world.rank());
  const char* name = "tiny-cmoe-threshold";
  TrainerOptions options{.dropout = 0.3};
  TrainingRun lone(name, *alone, options);
  const Groups groups(name, world, world.size(), Spread::balanced, DispatcherKind::automatic);
  TrainingRun together(name, world, options, {.rank = 4}, groups.parallel);
  for (int step = 0; step < 3; ++step) EXPECT_EQ(together.trainer->step().loss, lone.trainer->step().loss);
  const std::vector<float> running = lone.tiny.trained.thresholds();
  const auto some = std::span<const TrainingSequence>(lone.sequences).first(7);
  int64_t asked = 0;
  EXPECT_FALSE(lone.tiny.trained.calibrate_thresholds(some, *alone, [&] { return ++asked == 2; }));
  EXPECT_EQ(lone.tiny.trained.thresholds(), running);
  EXPECT_TRUE(lone.tiny.trained.calibrate_thresholds(some, *alone));
  EXPECT_TRUE(together.tiny.trained.calibrate_thresholds(some, world, [] { return false; }));
  EXPECT_EQ(together.tiny.trained.thresholds(), lone.tiny.trained.thresholds());
  EXPECT_NE(lone.tiny.trained.thresholds(), running);

  TrainedModel::Routed routed;
  const TrainedModel::Gradients unused = lone.tiny.trained.make_gradients();
  int64_t tokens = 0;
  for (const TrainingSequence& sequence : some) {
    lone.tiny.trained.add_gradient(sequence.tokens, sequence.segments, {}, {}, 1, {}, unused, routed);
    tokens += static_cast<int64_t>(sequence.tokens.size());
  }
  const MoeConfig& moe = *lone.tiny.checkpoint.config.moe;
  for (int64_t l = 0; l < lone.tiny.trained.num_layers(); ++l) {
    int64_t active = 0;
    for (int64_t e = 0; e < moe.num_routed_experts(); ++e)
      active += routed.loads[static_cast<size_t>(l * moe.num_routed_experts() + e)];
    EXPECT_EQ(active, moe.num_experts_per_tok * tokens) << "layer " << l;
  }
  lone.tiny.trained.set_thresholds(running);
  EXPECT_EQ(lone.tiny.trained.thresholds(), running);
}

// Every rank has a sequence of its own length, the second none; the model of one rank sees them one by one.
TEST(ExpertTraining, GradientsEqualOneRankToTheBit) {
  Communicator& world = test_world();
  const char* name = "tiny-cmoe-threshold";
  const Groups groups(name, world, world.size(), Spread::balanced, DispatcherKind::automatic);
  const TrainedParts parts{.rank = 3, .router_weights = true, .router_regression = 0.05};
  TinyModel together(name, parts, 1, DType::f32, groups.parallel), lone(name, parts);
  randomise(together.trained, 5);
  randomise(lone.trained, 5);
  const Transformer teacher(open_checkpoint(kModels + "tiny-cmoe-static"), make_cpu_backend(), DType::f32);
  const TrainedModel::Teacher taught{.model = &teacher, .logits = true, .hidden = true};
  const auto all = made_up_tokens(world.size(), 24);
  const auto tokens_of = [&](int rank) {
    return std::span(all[static_cast<size_t>(rank)]).first(rank == 1 ? 0 : static_cast<size_t>(24 - rank));
  };
  const auto segments_of = [&](int rank) {
    return rank == 1 ? Segments() : whole_sequence(static_cast<int64_t>(tokens_of(rank).size()));
  };
  std::vector<uint64_t> keys;
  for (int rank = 0; rank < world.size(); ++rank) keys.push_back(static_cast<uint64_t>(100 + rank));
  for (bool recompute : {false, true}) {
    const TrainedModel::LossOptions loss{.nll = 0.5, .kl = 0.3, .hidden = 0.2, .temperature = 2, .recompute = recompute};
    const TrainedModel::Gradients found = together.trained.make_gradients();
    TrainedModel::Routed routed;
    const SequenceLoss mine = together.trained.add_gradient(tokens_of(world.rank()), segments_of(world.rank()), loss, taught,
                                                            0.125, {0.25f, keys}, found, routed);
    for (int rank = 0; rank < world.size(); ++rank) {
      const TrainedModel::Gradients expected = lone.trained.make_gradients();
      TrainedModel::Routed unused;
      const SequenceLoss one = lone.trained.add_gradient(tokens_of(rank), segments_of(rank), loss, taught, 0.125,
                                                         {0.25f, {keys[static_cast<size_t>(rank)]}}, expected, unused);
      if (rank == world.rank()) {
        EXPECT_EQ(mine.nll, one.nll);
        EXPECT_EQ(mine.kl, one.kl);
        EXPECT_EQ(mine.hidden, one.hidden);
        EXPECT_EQ(mine.targets, one.targets);
        EXPECT_EQ(routed.loads, unused.loads);
        EXPECT_EQ(std::memcmp(found.parameters.raw(), expected.parameters.raw(), static_cast<size_t>(found.parameters.bytes())),
                  0);
      }
      // The experts here, by this rank's sequence, wherever it was.
      const ParameterSet &held = together.trained.expert_parameters(), &whole = lone.trained.expert_parameters();
      for (size_t i = 0; i < held.all().size(); ++i) {
        for (size_t j = 0; j < whole.all().size(); ++j) {
          if (whole.all()[j].place != held.all()[i].place) continue;
          const Tensor a = held.view(found.experts[static_cast<size_t>(rank)], static_cast<int64_t>(i));
          const Tensor b = whole.view(expected.experts[0], static_cast<int64_t>(j));
          EXPECT_EQ(whole.all()[j].name, held.all()[i].name);
          EXPECT_EQ(std::memcmp(a.raw(), b.raw(), static_cast<size_t>(a.bytes())), 0) << held.all()[i].name;
        }
      }
    }
  }
}

TEST(ExpertTraining, ARankHoldsTheAdaptersOfItsExpertsAlone) {
  Communicator& world = test_world();
  const char* name = "tiny-cmoe-healed";
  TinyModel lone(name);
  for (Spread spread : {Spread::contiguous, Spread::last_rank_has_all}) {
    const Groups groups(name, world, world.size(), spread, DispatcherKind::automatic);
    TinyModel together(name, {}, 1, DType::f32, groups.parallel);
    std::vector<int64_t> held{together.trained.expert_parameters().size()};
    if (spread == Spread::last_rank_has_all) {
      EXPECT_EQ(held[0], world.rank() == world.size() - 1 ? lone.trained.expert_parameters().size() : 0);
    }
    world.all_reduce_sum(held);
    EXPECT_EQ(held[0], lone.trained.expert_parameters().size());
    EXPECT_EQ(together.trained.parameters().size(), lone.trained.parameters().size());
    EXPECT_EQ(layout_hash(together.trained.layout()), layout_hash(lone.trained.layout()));
  }
}

// Three parts of one run, each on another number of ranks in other groups with another placement.
TEST(ExpertTraining, ResumesOnOtherRanksToTheSameBits) {
  Communicator& world = test_world();
  const char* name = "tiny-cmoe-healed";
  const TempFolder temporary;
  const std::string folder = shared_folder(temporary);
  const auto alone = world.split(world.rank());
  TrainingRun lone(name, *alone);
  std::vector<double> losses;
  for (int step = 0; step < 4; ++step) losses.push_back(lone.trainer->step().loss);

  struct Part {
    int ranks, group, until;
    Spread spread;
  };
  const int n = world.size(), four = std::min(4, n), two = std::min(2, n);
  for (const Part& part : {Part{four, four, 2, Spread::balanced}, Part{two, two, 3, Spread::contiguous},
                           Part{n, n % 2 == 0 ? n / 2 : n, 4, Spread::last_rank_has_all}}) {
    const auto comm = world.split(world.rank() < part.ranks ? 0 : 1);
    if (world.rank() < part.ranks) {
      const Groups groups(name, *comm, part.group, part.spread, DispatcherKind::automatic);
      TrainingRun run(name, *comm, {}, {.rank = 4}, groups.parallel);
      TrainingState state(folder, "options\n", *comm);
      if (state.newest()) state.load(*run.trainer);
      while (run.trainer->steps_done() < part.until) {
        const auto step = static_cast<size_t>(run.trainer->steps_done());
        EXPECT_EQ(run.trainer->step().loss, losses[step]);
      }
      state.save(*run.trainer);
      const std::vector<float> values = run.values();
      if (part.until == 4 && groups.parallel->rank() == 0) {
        EXPECT_EQ(values, lone.values());
      }
      if (part.until == 4 && comm->rank() < part.group)
        write_adapter(run.tiny.trained, "base", 0.1, shared_folder(temporary, *groups.group));
    }
    world.barrier();
  }
  if (world.rank() == 0) {
    const TempFolder expected;
    write_adapter(lone.tiny.trained, "base", 0.1, expected.path().string());
    for (const char* file : {"adapter_config.json", "adapter_model.safetensors", "router.safetensors"})
      EXPECT_EQ(read_bytes(temporary / file), read_bytes(expected / file)) << file;
  }
  world.barrier();
}

TEST(ExpertTraining, Refusals) {
  Communicator& world = test_world();
  const char* name = "tiny-cmoe-healed";
  const std::vector<int32_t> ids(8, 1);
  const std::vector<TrainingSequence> sequences{{ids, whole_sequence(8)}};
  if (world.size() == 1) return;
  const Groups groups(name, world, world.size(), Spread::contiguous, DispatcherKind::automatic);
  TinyModel tiny(name, {}, 1, DType::f32, groups.parallel);
  const auto alone = world.split(world.rank());
  expect_error([&] { Trainer(tiny.trained, {}, {}, sequences, *alone); },
               fmt::format("rank 0 of 1 has number {} in a group of {} that share experts", world.rank(), world.size()));

  const std::vector<double> load{9, 1, 1, 1, 1};
  const auto copies = std::make_shared<ExpertParallel>(
      world, std::vector<ExpertPlacement>(2, ExpertPlacement::balanced(load, world.size(), 1)), DispatcherOptions{});
  expect_error([&] { TinyModel(name, {}, 1, DType::f32, copies); },
               "layer 0 has expert 0 on 2 ranks of a group; training expects each on one");
}

}  // namespace
}  // namespace cmoe

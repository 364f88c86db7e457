#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "model/expert_plan.h"
#include "model/generation.h"
#include "serve/batch_generation.h"
#include "support/refusal.h"
#include "support/world.h"

namespace cmoe {
namespace {

const std::string kModel = std::string(CMOE_SOURCE_DIR) + "/tests/model/fixtures/tiny-cmoe-threshold";

// Prompts of unlike lengths, greedy and drawn, from one token to some forty.
std::vector<BatchRequest> prompts() {
  std::ifstream file(kModel + "/golden_ids.txt");
  std::vector<int32_t> ids;
  for (int32_t id; file >> id;) ids.push_back(id);
  std::vector<BatchRequest> requests;
  for (size_t i = 0; i < 11; ++i) {
    BatchRequest request;
    for (size_t t = 0; t < 1 + i * 7 % 23; ++t) request.prompt.push_back(ids[(i + t) % ids.size()]);
    request.max_tokens = static_cast<int64_t>(1 + i * 5 % 9);
    if (i % 3 == 1) request.sampling = {.temperature = 1.5, .top_p = 0.9, .seed = i};
    requests.push_back(request);
  }
  return requests;
}

class BatchGeneration : public ::testing::Test {
 protected:
  Communicator& world = test_world();
  std::shared_ptr<const Backend> backend = make_cpu_backend();
  Checkpoint checkpoint = open_checkpoint(kModel);
  std::vector<BatchRequest> requests = prompts();

  Transformer spread(Communicator& group, DispatcherKind kind) const {
    const auto routed = static_cast<int32_t>(checkpoint.config.moe->num_routed_experts());
    const std::vector<ExpertPlacement> placement(static_cast<size_t>(checkpoint.config.num_hidden_layers),
                                                 ExpertPlacement::contiguous(routed, group.size()));
    return Transformer(checkpoint, backend, DType::f32, Transformer::LoadFfn::yes,
                       std::make_shared<ExpertParallel>(group, placement, DispatcherOptions{.kind = kind}));
  }
  // Each prompt alone, on one rank.
  std::vector<GenerationResult> expected() {
    const Transformer one(checkpoint, backend, DType::f32);
    const auto alone = world.split(world.rank());
    std::vector<GenerationResult> results;
    for (const BatchRequest& r : requests) results.push_back(generate(one, r.prompt, r.max_tokens, r.sampling, *alone));
    return results;
  }
  void expect_equal(const std::vector<BatchAnswer>& answers, const std::vector<GenerationResult>& results) {
    ASSERT_EQ(answers.size(), results.size());
    for (size_t i = 0; i < answers.size(); ++i) {
      EXPECT_EQ(answers[i].tokens, results[i].tokens) << "prompt " << i;
      EXPECT_EQ(answers[i].ended, results[i].ended) << "prompt " << i;
    }
  }
};

TEST_F(BatchGeneration, AnswersAreThoseOfEachPromptAlone) {
  const std::vector<GenerationResult> results = expected();
  for (const DispatcherKind kind : {DispatcherKind::all_to_all, DispatcherKind::all_gather}) {
    const Transformer model = spread(world, kind);
    for (const BatchLimits& limits :
         {BatchLimits{}, BatchLimits{.max_batch = 1}, BatchLimits{.max_batch = 2, .max_step_tokens = 3}}) {
      BatchReport report;
      int64_t answered = 0;
      expect_equal(generate_batch(model, requests, limits, world, nullptr, &report,
                                  [&](int64_t answers) {
                                    EXPECT_GE(answers, answered);
                                    answered = answers;
                                  }),
                   results);
      EXPECT_EQ(answered, static_cast<int64_t>(requests.size()));
      EXPECT_LE(report.most_sequences, limits.max_batch * world.size());
      int64_t prompt_tokens = 0;
      for (const BatchRequest& r : requests) prompt_tokens += static_cast<int64_t>(r.prompt.size());
      EXPECT_EQ(report.prompt_tokens, prompt_tokens);
    }
  }
}

TEST_F(BatchGeneration, SequencesJoinARunningBatch) {
  const Transformer model = spread(world, DispatcherKind::automatic);
  // One long answer and many short ones: if the batch waited for the long one, the steps would add up.
  requests.resize(6);
  for (BatchRequest& r : requests) {
    r.max_tokens = 2;
    r.sampling = {};
  }
  requests[0].max_tokens = 12;
  BatchReport report;
  expect_equal(generate_batch(model, requests, {.max_batch = 2}, world, nullptr, &report), expected());
  EXPECT_LE(report.steps, 12);
}

TEST_F(BatchGeneration, GroupsThatShareExpertsDivideTheWorld) {
  if (world.size() % 2 != 0) GTEST_SKIP() << "needs an even number of ranks";
  const auto group = world.split(world.rank() / 2);
  const Transformer model = spread(*group, DispatcherKind::automatic);
  expect_equal(generate_batch(model, requests, {.max_batch = 1}, world), expected());
}

TEST_F(BatchGeneration, NothingToDo) {
  const Transformer model = spread(world, DispatcherKind::automatic);
  EXPECT_TRUE(generate_batch(model, {}, {}, world).empty());
}

TEST_F(BatchGeneration, MemoryIsPlannedAndRefusedWithTheNumbers) {
  const Transformer model = spread(world, DispatcherKind::automatic);
  std::vector<int64_t> weights{model.weight_bytes()};
  world.all_reduce_max(std::span(weights));
  int64_t longest = 0;
  for (const BatchRequest& r : requests)
    longest = std::max(longest, KvCache::bytes(model.config(), static_cast<int64_t>(r.prompt.size()) + r.max_tokens));
  BatchLimits limits{.max_step_tokens = 64};
  limits.max_memory_bytes = weights[0] + activation_bytes(model.config(), 64) + longest;
  BatchReport report;
  expect_equal(generate_batch(model, requests, limits, world, nullptr, &report), expected());
  if (world.size() == 1) {
    EXPECT_LT(report.most_sequences, 5) << "there is room for the longest sequence alone";
  }

  // Every rank has the same room here, so that it takes less than the longest on all of them.
  const auto alone = world.split(world.rank());
  const Transformer one(checkpoint, backend, DType::f32);
  limits.max_memory_bytes = one.weight_bytes() + activation_bytes(one.config(), 64) + longest - 1;
  EXPECT_THAT(refusal([&] { generate_batch(one, requests, limits, *alone); }),
              ::testing::AllOf(::testing::HasSubstr("the KV cache of prompt"),
                               ::testing::HasSubstr("tokens); expected at most"), ::testing::HasSubstr("--max-memory")));
  limits.max_memory_bytes = one.weight_bytes();
  EXPECT_THAT(refusal([&] { generate_batch(one, requests, limits, *alone); }), ::testing::HasSubstr("for its weights and"));
}

TEST_F(BatchGeneration, RefusesPromptsThatDoNotFit) {
  const Transformer model = spread(world, DispatcherKind::automatic);
  const auto message = [&](const BatchRequest& request, const BatchLimits& limits = {}) {
    return refusal([&] { generate_batch(model, std::span(&request, 1), limits, world); });
  };
  EXPECT_THAT(message({}), ::testing::HasSubstr("prompt 1 has no tokens"));
  EXPECT_THAT(message({.prompt = {1}, .max_tokens = 0}), ::testing::HasSubstr("asks for 0 new tokens"));
  EXPECT_THAT(message({.prompt = {1, 2}, .max_tokens = 127}),
              ::testing::HasSubstr("has 2 tokens, and 127 new ones are more than the model's 128 positions"));
  EXPECT_THAT(message({.prompt = {1}}, {.max_batch = 4, .max_step_tokens = 3}),
              ::testing::HasSubstr("max_batch 4 and max_step_tokens 3"));
}

}  // namespace
}  // namespace cmoe

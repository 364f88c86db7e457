#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "model/generation.h"
#include "support/refusal.h"
#include "support/tiny_model.h"
#include "support/world.h"

namespace cmoe {
namespace {

const std::vector<int32_t> kPrompt{1, 40, 77, 120, 200};

Transformer load(const std::string& name) {
  return Transformer(open_checkpoint(fixture(name)), make_cpu_backend(), DType::f32);
}

// The most likely next token, from the whole sequence again each time.
std::vector<int32_t> greedy_without_cache(const Transformer& model, std::vector<int32_t> ids, int64_t count) {
  std::vector<int32_t> result;
  for (int64_t n = 0; n < count; ++n) {
    KvCache cache(model.config(), static_cast<int64_t>(ids.size()));
    const SequenceStep step{.tokens = ids, .cache = &cache};
    const Tensor hidden = model.forward(Batch(std::span(&step, 1)));
    const Tensor logits = model.logits(hidden.rows(hidden.dim(0) - 1, hidden.dim(0)));
    const auto row = logits.span<float>();
    ids.push_back(static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin()));
    const auto& ends = model.config().eos_token_ids;
    if (std::find(ends.begin(), ends.end(), ids.back()) != ends.end()) break;
    result.push_back(ids.back());
  }
  return result;
}

TEST(Generate, GreedyEqualsRecomputingEverythingDenseAndCarved) {
  for (const char* name : {"tiny-llama", "tiny-cmoe-threshold", "tiny-cmoe-static"}) {
    const Transformer model = load(name);
    std::vector<int32_t> prompt;
    for (int32_t id : kPrompt) prompt.push_back(id % static_cast<int32_t>(model.config().vocab_size));
    std::vector<int32_t> seen;
    const GenerationResult result = generate(model, prompt, 12, {}, test_world(), [&](int32_t id) { seen.push_back(id); });
    EXPECT_EQ(result.tokens, greedy_without_cache(model, prompt, 12)) << name;
    EXPECT_EQ(seen, test_world().rank() == 0 ? result.tokens : std::vector<int32_t>{}) << name;
    EXPECT_EQ(result.ended, result.tokens.size() < 12) << name;
    EXPECT_EQ(result.decode_steps, static_cast<int64_t>(result.tokens.size()) - (result.ended ? 0 : 1)) << name;
  }
}

TEST(Generate, StopsAtAnyEndToken) {
  Checkpoint checkpoint = open_checkpoint(fixture("tiny-llama"));
  const std::vector<int32_t> free = generate(load("tiny-llama"), kPrompt, 8, {}, test_world()).tokens;
  ASSERT_GE(free.size(), 4u);
  // The token that comes third is now an end token.
  checkpoint.config.eos_token_ids = {383, free[2]};
  const Transformer model(checkpoint, make_cpu_backend(), DType::f32);
  const GenerationResult result = generate(model, kPrompt, 8, {}, test_world());
  const auto first = std::find(free.begin(), free.end(), free[2]);
  EXPECT_TRUE(result.ended);
  EXPECT_EQ(result.tokens, std::vector<int32_t>(free.begin(), first));
}

TEST(Generate, SamplesBySeedAndTheSameOnAllRanks) {
  const Transformer model = load("tiny-llama");
  const auto sample = [&](uint64_t seed) {
    return generate(model, kPrompt, 20, {.temperature = 1.5, .seed = seed}, test_world()).tokens;
  };
  const std::vector<int32_t> first = sample(3);
  EXPECT_EQ(sample(3), first);
  EXPECT_NE(sample(4), first);
  const auto all = test_world().all_gather_v(std::span<const int32_t>(first));
  for (size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i], first[i % first.size()]);
}

TEST(Generate, RefusesWhatDoesNotFit) {
  const Transformer model = load("tiny-llama");
  EXPECT_THAT(refusal([&] { generate(model, {}, 8, {}, test_world()); }), ::testing::HasSubstr("the prompt has no tokens"));
  EXPECT_THAT(refusal([&] { generate(model, kPrompt, 252, {}, test_world()); }),
              ::testing::HasSubstr("5 prompt tokens and --max-tokens 252 are more than the model's 256 positions"));
  EXPECT_TRUE(generate(model, kPrompt, 0, {}, test_world()).tokens.empty());
}

}  // namespace
}  // namespace cmoe

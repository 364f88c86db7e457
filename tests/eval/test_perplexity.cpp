#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "eval/expert_counter.h"
#include "eval/perplexity.h"
#include "moe/recorder.h"
#include "support/refusal.h"
#include "support/spread_experts.h"
#include "support/world.h"

namespace cmoe {
namespace {

const std::string kFixtures = std::string(CMOE_SOURCE_DIR) + "/tests/model/fixtures/";

class Perplexity : public ::testing::TestWithParam<const char*> {
 protected:
  Communicator& world = test_world();
  std::shared_ptr<const Backend> backend = make_cpu_backend();
  Checkpoint checkpoint = open_checkpoint(kFixtures + GetParam());
  std::vector<int32_t> ids = read_ids();
  std::vector<ScoredWindow> windows = cut();

  std::vector<int32_t> read_ids() const {
    std::ifstream file(kFixtures + GetParam() + "/golden_ids.txt");
    std::vector<int32_t> read;
    for (int32_t id; file >> id;) read.push_back(id);
    return read;
  }
  // Windows of unlike lengths, some of which score only their end.
  std::vector<ScoredWindow> cut() const {
    std::vector<ScoredWindow> made;
    for (size_t i = 0; i < 7; ++i)
      made.push_back({.tokens = std::span(ids).subspan(i % 3, 5 + i % 4), .score_from = i % 2 == 0 ? 1 : 3});
    return made;
  }
};

TEST_P(Perplexity, EqualsThePlainComputation) {
  const Transformer model(checkpoint, backend, DType::f32);
  const PerplexityResult result = evaluate_perplexity(model, windows, world);
  ASSERT_EQ(result.nll.size(), windows.size());
  double weighted = 0, predictions = 0;
  for (size_t w = 0; w < windows.size(); ++w) {
    const auto tokens = windows[w].tokens;
    KvCache cache(model.config(), static_cast<int64_t>(tokens.size()));
    const SequenceStep step{.tokens = tokens, .cache = &cache};
    const Tensor logits = model.logits(model.forward(Batch(std::span(&step, 1))));
    double sum = 0;
    for (size_t t = static_cast<size_t>(windows[w].score_from); t < tokens.size(); ++t) {
      const float* row = logits.row<float>(static_cast<int64_t>(t) - 1);
      double total = 0;
      for (int64_t i = 0; i < logits.dim(1); ++i) total += std::exp(static_cast<double>(row[i]));
      sum += std::log(total) - row[tokens[t]];
    }
    const auto count = static_cast<double>(static_cast<int64_t>(tokens.size()) - windows[w].score_from);
    EXPECT_NEAR(result.nll[w], sum / count, 1e-5) << "window " << w;
    EXPECT_EQ(static_cast<double>(result.predictions[w]), count);
    weighted += sum;
    predictions += count;
  }
  EXPECT_NEAR(result.mean(), weighted / predictions, 1e-5);
  EXPECT_DOUBLE_EQ(result.perplexity(), std::exp(result.mean()));
}

TEST_P(Perplexity, DoesNotDependOnTheRanks) {
  const Transformer one(checkpoint, backend, DType::f32);
  const auto alone = world.split(world.rank());
  const PerplexityResult expected = evaluate_perplexity(one, windows, *alone);
  EXPECT_EQ(evaluate_perplexity(one, windows, world).nll, expected.nll);
  if (!checkpoint.config.moe) return;

  // Experts spread over all ranks, and over pairs of ranks.
  ExpertCounter counted_alone(checkpoint.config);
  evaluate_perplexity(one, windows, *alone, &counted_alone);
  for (const int group_size : {world.size(), 2}) {
    if (world.size() % group_size != 0) continue;
    const SpreadExperts spread(checkpoint.config, world, group_size);
    const Transformer model(checkpoint, backend, DType::f32, Transformer::LoadFfn::yes, spread.parallel);
    ExpertCounter counter(checkpoint.config);
    MoeRecorder recorder(spread.parallel, world, /*keep_calls=*/true);
    MoeObserverList observers;
    observers.add(&counter);
    observers.add(&recorder);
    EXPECT_EQ(evaluate_perplexity(model, windows, world, &observers).nll, expected.nll);
    counter.reduce(world);
    EXPECT_EQ(counter.to_json(), counted_alone.to_json());

    const MoeStats merged = recorder.stats().merged(world);
    int64_t tokens = 0;
    for (const ScoredWindow& window : windows) tokens += static_cast<int64_t>(window.tokens.size());
    for (const LayerStats& layer : merged.layers) EXPECT_EQ(layer.tokens, tokens);
    EXPECT_EQ(merged.layers[0].sent.total() > 0, group_size > 1);
    const nlohmann::json trace = nlohmann::json::parse(recorder.chrome_trace(world));
    const size_t steps = (windows.size() + static_cast<size_t>(world.size()) - 1) / static_cast<size_t>(world.size());
    const size_t calls = steps * static_cast<size_t>(world.size() * checkpoint.config.num_hidden_layers);
    EXPECT_EQ(trace.at("traceEvents").size(), static_cast<size_t>(world.size()) + kMoeStages * calls);
    for (const auto& event : trace["traceEvents"]) {
      EXPECT_TRUE(event.contains("pid") && event.contains("ph"));
      if (event["ph"] == "X") {
        EXPECT_GE(event["ts"].get<double>(), 0.0);
        EXPECT_GE(event["dur"].get<double>(), 0.0);
      }
    }
  }
}

TEST_P(Perplexity, RefusesWindowsThatPredictNothing) {
  const Transformer model(checkpoint, backend, DType::f32);
  const ScoredWindow window{.tokens = std::span(ids).first(3), .score_from = 3};
  EXPECT_THAT(refusal([&] { evaluate_perplexity(model, std::span(&window, 1), world); }),
              ::testing::HasSubstr("a window of 3 tokens predicts nothing from token 3 on"));
}

INSTANTIATE_TEST_SUITE_P(Models, Perplexity, ::testing::Values("tiny-llama", "tiny-cmoe-threshold"));

TEST(PairedDifference, IsTheMeanOfDifferencesAndItsStandardError) {
  const auto [mean, error] = paired_difference({3, 5, 10}, {1, 4, 4});  // differences 2, 1, 6
  EXPECT_DOUBLE_EQ(mean, 3);
  EXPECT_DOUBLE_EQ(error, std::sqrt(7.0 / 3.0));  // variance ((-1)^2 + (-2)^2 + 3^2) / 2, over 3 windows
  EXPECT_EQ(paired_difference({2}, {1}), (std::pair<double, double>{1, 0}));
}

}  // namespace
}  // namespace cmoe

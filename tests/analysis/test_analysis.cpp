#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "analysis/report.h"
#include "support/refusal.h"
#include "support/tiny_model.h"
#include "support/world.h"

namespace cmoe {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

// Every number of `expected` is in `found`, near enough.
void expect_near(const json& found, const json& expected, const std::string& where) {
  if (expected.is_object()) {
    for (const auto& [key, value] : expected.items()) {
      ASSERT_TRUE(found.contains(key)) << where << "." << key;
      expect_near(found[key], value, where + "." + key);
    }
  } else if (expected.is_array()) {
    ASSERT_EQ(found.size(), expected.size()) << where;
    for (size_t i = 0; i < expected.size(); ++i) expect_near(found[i], expected[i], where + "[" + std::to_string(i) + "]");
  } else {
    EXPECT_NEAR(found.get<double>(), expected.get<double>(), 2e-5 * std::max(1.0, std::abs(expected.get<double>()))) << where;
  }
}

class Analysis : public ::testing::TestWithParam<const char*> {
 protected:
  Communicator& world = test_world();
  std::shared_ptr<const Backend> backend = make_cpu_backend();
  Checkpoint checkpoint = open_checkpoint(fixture(GetParam()));
  std::vector<int32_t> ids = read_ids();
  std::vector<std::span<const int32_t>> windows = {std::span(ids).first(16), std::span(ids).subspan(16, 16)};

  std::vector<int32_t> read_ids() const {
    std::ifstream file(fixture(GetParam()) + "/golden_ids.txt");
    std::vector<int32_t> read;
    for (int32_t id; file >> id;) read.push_back(id);
    return read;
  }
  MoeAnalysis analyze(Communicator& comm) const {
    MoeAnalysis analysis{.model = GetParam()};
    for (int64_t l = 0; l < checkpoint.config.num_hidden_layers; ++l)
      analysis.weights.push_back(analyze_expert_weights(checkpoint, *backend, l, /*match=*/true));
    OutputAnalysis outputs = analyze_expert_outputs(checkpoint, backend, DType::f32, windows, std::span(ids).first(5), comm);
    analysis.outputs = std::move(outputs.layers);
    analysis.prompt_routing = std::move(outputs.prompt);
    analysis.prompt = {"<a>", "b", "c", "d", "e"};
    return analysis;
  }
};

TEST_P(Analysis, EqualsNumpyAndScipy) {
  const json golden =
      json::parse(read_text(std::string(CMOE_SOURCE_DIR) + "/tests/analysis/fixtures/golden.json")).at(GetParam());
  const json found = to_json(analyze(world));
  expect_near(found, golden, GetParam());
}

TEST_P(Analysis, DoesNotDependOnTheRanks) {
  const auto alone = world.split(world.rank());
  EXPECT_EQ(to_json(analyze(world)), to_json(analyze(*alone)));
}

TEST_P(Analysis, PromptShowsWhatTheRoutersChoose) {
  const MoeAnalysis analysis = analyze(world);
  ASSERT_EQ(analysis.prompt_routing.size(), static_cast<size_t>(checkpoint.config.num_hidden_layers));
  class Recorder : public MoeObserver {
   public:
    RoutingMap map;
    void on_routing(int64_t, const Routing& routing) override {
      std::vector<std::vector<int32_t>>& layer = map.emplace_back();
      for (int64_t t = 0; t < routing.tokens(); ++t) layer.emplace_back(routing.experts(t).begin(), routing.experts(t).end());
    }
  } recorder;
  const Transformer model(checkpoint, backend, DType::f32);
  KvCache cache(model.config(), 5);
  const SequenceStep step{.tokens = std::span(ids).first(5), .cache = &cache};
  model.forward(Batch(std::span(&step, 1)), &recorder);
  EXPECT_EQ(analysis.prompt_routing, recorder.map);
}

TEST_P(Analysis, ReportsHoldEveryLayer) {
  const MoeAnalysis analysis = analyze(world);
  const std::string html = html_report(analysis);
  EXPECT_THAT(html, HasSubstr("<h3>Layer 1</h3>"));
  EXPECT_THAT(html, HasSubstr("&lt;a&gt;"));
  EXPECT_THAT(html, HasSubstr("norm rank (down), score rank"));
  const std::string table = summary_table(analysis);
  EXPECT_EQ(std::count(table.begin(), table.end(), '\n'), 2 + checkpoint.config.num_hidden_layers);
  for (size_t l = 0; l < analysis.weights.size(); ++l)
    EXPECT_EQ(to_json(expert_weights_from_json(to_json(analysis.weights[l]))), to_json(analysis.weights[l]));
}

INSTANTIATE_TEST_SUITE_P(Models, Analysis, ::testing::Values("tiny-cmoe-threshold", "tiny-cmoe-healed"));

TEST(AnalysisRefusals, ModelsWithoutRoutedExperts) {
  for (const char* name : {"tiny-llama", "tiny-cmoe-static"}) {
    const Checkpoint checkpoint = open_checkpoint(fixture(name));
    const std::shared_ptr<const Backend> backend = make_cpu_backend();
    EXPECT_THAT(refusal([&] { analyze_expert_weights(checkpoint, *backend, 0, false); }), HasSubstr("has no routed experts"));
    EXPECT_THAT(refusal([&] { analyze_expert_outputs(checkpoint, backend, DType::f32, {}, {}, test_world()); }),
                HasSubstr("has no routed experts; analyze takes a carved model"));
  }
}

}  // namespace
}  // namespace cmoe

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "model/expert_loads.h"
#include "model/expert_plan.h"
#include "model/transformer.h"
#include "support/files.h"
#include "support/refusal.h"

namespace cmoe {
namespace {

using ::testing::HasSubstr;

const std::string kFixtures = std::string(CMOE_SOURCE_DIR) + "/tests/model/fixtures/";

// A carved model of 2 layers and 5 routed experts with the loads given.
class LoadedModel {
 public:
  explicit LoadedModel(const std::string& loads) {
    for (const char* name : {"config.json", "model.safetensors"})
      std::filesystem::copy_file(kFixtures + "tiny-cmoe-threshold/" + name, folder_ / name);
    if (!loads.empty()) write_bytes(folder_ / kExpertLoadsFile, loads);
  }
  Checkpoint open() const { return open_checkpoint(folder_.path()); }

 private:
  TempFolder folder_;
};

TEST(ExpertLoads, AreReadAsTheyWereWritten) {
  const ExpertLoads loads{.tokens = 9, .layers = {{1, 2, 3, 4, 9}, {0, 0, 5, 0, 1}}};
  const LoadedModel model(loads.to_json_text());
  const ExpertLoads read = read_expert_loads(model.open());
  EXPECT_EQ(read.tokens, loads.tokens);
  EXPECT_EQ(read.layers, loads.layers);
}

TEST(ExpertLoads, RefusesWhatDoesNotFitTheModel) {
  const auto message = [](const std::string& text) {
    const LoadedModel model(text);
    return refusal([&] { read_expert_loads(model.open()); });
  };
  EXPECT_THAT(message(""), HasSubstr("expert_loads.json: is missing, and a balanced placement needs it"));
  EXPECT_THAT(message(""), HasSubstr("use --placement contiguous"));
  EXPECT_THAT(message("{"), HasSubstr("expected tokens and tokens_per_expert"));
  EXPECT_THAT(message(R"({"tokens": 1, "tokens_per_expert": [["a"]]})"), HasSubstr("expected tokens and tokens_per_expert"));
  EXPECT_THAT(message(R"({"tokens": 1, "tokens_per_expert": [[1, 1, 1, 1, 1]]})"), HasSubstr("has 1 layers; expected 2"));
  EXPECT_THAT(message(R"({"tokens": 1, "tokens_per_expert": [[1, 1, 1, 1, 1], [1, 1]]})"),
              HasSubstr("layer 1 has 2 experts; expected 5"));
  EXPECT_THAT(message(R"({"tokens": 1, "tokens_per_expert": [[1, 1, 1, 1, 1], [1, 1, 2, 1, 1]]})"),
              HasSubstr("layer 1 has an expert with 2 of 1 tokens"));
}

TEST(PlaceExperts, BalancesTheLoadsOfEachLayer) {
  const LoadedModel model(ExpertLoads{.tokens = 9, .layers = {{9, 1, 1, 1, 6}, {0, 0, 5, 5, 2}}}.to_json_text());
  const Checkpoint checkpoint = model.open();
  const auto balanced = place_experts(checkpoint, PlacementKind::balanced, 2, 0);
  ASSERT_EQ(balanced.size(), 2u);
  EXPECT_EQ(balanced[0].rank_load(std::vector<double>{9, 1, 1, 1, 6}), (std::vector<double>{9, 9}));
  const auto redundant = place_experts(checkpoint, PlacementKind::balanced, 2, 1);
  size_t copies = 0;
  for (int32_t e = 0; e < 5; ++e) copies += redundant[1].copies(GlobalExpert{e}).size();
  EXPECT_GE(copies, 5u);
  EXPECT_LE(copies, 6u);
  EXPECT_EQ(place_experts(checkpoint, PlacementKind::contiguous, 2, 0)[1].fingerprint(),
            ExpertPlacement::contiguous(5, 2).fingerprint());
}

TEST(PlaceExperts, RefusesWhatItCannotPlace) {
  const LoadedModel model("");
  EXPECT_THAT(refusal([&] { place_experts(model.open(), PlacementKind::contiguous, 2, 1); }),
              HasSubstr("redundant_experts: 1 with contiguous placement; expected 0"));
  EXPECT_THAT(refusal([&] { place_experts(open_checkpoint(kFixtures + "tiny-llama"), PlacementKind::contiguous, 2, 0); }),
              HasSubstr("is dense and has no experts to place"));
}

TEST(PlanRank, PartsAddUpToTheModel) {
  const Checkpoint checkpoint = open_checkpoint(kFixtures + "tiny-cmoe-threshold");
  const auto one = place_experts(checkpoint, PlacementKind::contiguous, 1, 0);
  const auto three = place_experts(checkpoint, PlacementKind::contiguous, 3, 0);
  const RankPlan whole = plan_rank(checkpoint, DType::bf16, one, 0);
  int64_t all = 0;
  for (const std::string& name : checkpoint.tensors->names()) all += checkpoint.tensors->stored_bytes(name);
  EXPECT_EQ(whole.read_bytes, all);
  EXPECT_EQ(whole.experts, 10);
  const ModelConfig& config = checkpoint.config;
  // What the routed experts take: gate, up and down of m neurons, 5 of them in 2 layers, at 2 bytes.
  const int64_t routed = 10 * 3 * config.moe->moe_intermediate_size * config.hidden_size * 2;
  int64_t weights = 0, experts = 0;
  for (int rank = 0; rank < 3; ++rank) {
    const RankPlan plan = plan_rank(checkpoint, DType::bf16, three, rank);
    weights += plan.weight_bytes;
    experts += plan.experts;
  }
  EXPECT_EQ(experts, 10);
  EXPECT_EQ(weights, 3 * (whole.weight_bytes - routed) + routed);
}

TEST(ExpertsPerToken, HaveTheMeanOfTheConfig) {
  for (const Selector selector : {Selector::topk, Selector::threshold}) {
    const MoeConfig moe{.num_experts = 8, .num_shared_experts = 3, .num_experts_per_tok = 2, .selector = selector};
    const std::vector<double> p = experts_per_token(moe);
    ASSERT_EQ(p.size(), 6u);
    double mean = 0;
    for (size_t k = 0; k < p.size(); ++k) mean += static_cast<double>(k) * p[k];
    EXPECT_NEAR(std::accumulate(p.begin(), p.end(), 0.0), 1, 1e-12);
    EXPECT_NEAR(mean, 2, 1e-12);
    if (selector == Selector::topk) {
      EXPECT_EQ(p[2], 1);
    } else {
      EXPECT_NEAR(p[0], 0.6 * 0.6 * 0.6 * 0.6 * 0.6, 1e-12);
    }
  }
}

TEST(WireBytesPerToken, IsTheSumOverLayers) {
  ModelConfig config = open_checkpoint(kFixtures + "tiny-cmoe-threshold").config;
  config.moe->selector = Selector::topk;
  config.moe->num_experts_per_tok = 5;  // all of them: every token goes everywhere
  const std::vector<ExpertPlacement> alone(2, ExpertPlacement::contiguous(5, 1));
  EXPECT_EQ(wire_bytes_per_token(config, alone, DType::f32), 0);
  const std::vector<ExpertPlacement> five(2, ExpertPlacement::contiguous(5, 5));
  // A row to each of 4 ranks with a list of 1 expert (8 bytes), and 4 partial results back, in 2 layers.
  EXPECT_NEAR(wire_bytes_per_token(config, five, DType::f32), 2 * 4 * (2 * 32 * 4 + 8), 1e-3);
}

TEST(ActivationBytes, GrowWithTheRows) {
  const ModelConfig config = open_checkpoint(kFixtures + "tiny-llama").config;
  EXPECT_EQ(activation_bytes(config, 0), 0);
  EXPECT_EQ(activation_bytes(config, 6), 2 * activation_bytes(config, 3));
  EXPECT_GE(activation_bytes(config, 1), 4 * (2 * config.hidden_size + 2 * config.intermediate_size));
}

}  // namespace
}  // namespace cmoe

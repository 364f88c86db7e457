#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "carve/select_neurons.h"

namespace cmoe {
namespace {

using ::testing::DoubleEq;
using ::testing::ElementsAre;

// Three neurons; W_d has columns (1, 0), (0, 2), (1, 1).
const Tensor& down() {
  static const Tensor tensor = [] {
    Tensor t(DType::f32, {2, 3});
    const float values[] = {1, 0, 1, 0, 2, 1};
    std::copy_n(values, 6, t.data<float>());
    return t;
  }();
  return tensor;
}

NeuronStatistics statistics() {
  return {.tokens = 10, .marked = {5, 10, 0}, .mean = {1, 0.5, -1}, .second_moment = {2, 1, 4}, .mean_abs = {1, 1, 2}};
}

TEST(ScoreNeurons, FollowsTheFormulas) {
  EXPECT_THAT(score_neurons(Score::activation_rate, statistics(), down(), 0, 0), ElementsAre(0.5, 1.0, 0.0));
  EXPECT_THAT(score_neurons(Score::mass, statistics(), down(), 0, 0), ElementsAre(2.0, 4.0, 8.0));
  EXPECT_THAT(score_neurons(Score::variance, statistics(), down(), 0, 0), ElementsAre(1.0, 3.0, 6.0));
  EXPECT_THAT(score_neurons(Score::index, statistics(), down(), 0, 0), ElementsAre(0.0, -1.0, -2.0));
}

TEST(ScoreNeurons, RandomIsByLayerAndSeed) {
  const auto random = [](uint64_t seed, int64_t layer) {
    return score_neurons(Score::random, statistics(), down(), seed, layer);
  };
  EXPECT_EQ(random(1, 2), random(1, 2));
  EXPECT_NE(random(1, 2), random(1, 3));
  EXPECT_NE(random(1, 2), random(2, 2));
}

TEST(HighestNeurons, AreAscendingAndTiesGoToTheSmallerIndex) {
  EXPECT_THAT(highest_neurons({3, 1, 4, 1, 5}, 3), ElementsAre(0, 2, 4));
  EXPECT_THAT(highest_neurons({1, 1, 1, 1}, 2), ElementsAre(0, 1));
  EXPECT_THAT(highest_neurons({0, 2, 1, 2, 2}, 2), ElementsAre(1, 3));
  EXPECT_THAT(highest_neurons({1, 2}, 0), ElementsAre());
  EXPECT_THAT(highest_neurons({1, 2}, 2), ElementsAre(0, 1));
}

TEST(RemainingNeurons, AreTheOthers) {
  EXPECT_THAT(remaining_neurons(5, {0, 3}), ElementsAre(1, 2, 4));
  EXPECT_THAT(remaining_neurons(3, {}), ElementsAre(0, 1, 2));
  EXPECT_THAT(remaining_neurons(2, {0, 1}), ElementsAre());
}

}  // namespace
}  // namespace cmoe

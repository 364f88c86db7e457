#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>

#include "model/sampler.h"
#include "support/refusal.h"

namespace cmoe {
namespace {

const std::vector<float> kLogits{1.0f, 3.0f, 2.0f, 3.0f, -50.0f};

// How often each token comes in 20,000 draws.
std::map<int32_t, double> shares(const SamplingOptions& options) {
  constexpr int kDraws = 20000;
  Sampler sampler(options);
  std::map<int32_t, double> share;
  for (int i = 0; i < kDraws; ++i) share[sampler.next(kLogits)] += 1.0 / kDraws;
  return share;
}

// softmax(logits / temperature) over some of the tokens.
std::map<int32_t, double> softmax(double temperature, const std::vector<int32_t>& of) {
  std::map<int32_t, double> p;
  double sum = 0;
  for (int32_t i : of) sum += p[i] = std::exp(kLogits[static_cast<size_t>(i)] / temperature);
  for (auto& [id, value] : p) value /= sum;
  return p;
}

// Four standard deviations of a share of 20,000 draws are at most 0.0142.
void expect_near(const std::map<int32_t, double>& found, const std::map<int32_t, double>& expected) {
  for (const auto& [id, share] : found) EXPECT_TRUE(expected.contains(id)) << "token " << id << " was drawn";
  for (const auto& [id, p] : expected) EXPECT_NEAR(found.contains(id) ? found.at(id) : 0, p, 0.0142) << "token " << id;
}

TEST(Sampler, GreedyTakesTheFirstOfTheLargest) {
  Sampler sampler({});
  for (int i = 0; i < 3; ++i) EXPECT_EQ(sampler.next(kLogits), 1);
  EXPECT_EQ(Sampler({}).next(std::vector<float>{-1, -1}), 0);
}

TEST(Sampler, DrawsBySoftmaxOfTheTemperature) {
  for (double temperature : {0.5, 1.0, 3.0})
    expect_near(shares({.temperature = temperature}), softmax(temperature, {0, 1, 2, 3, 4}));
}

TEST(Sampler, TopKKeepsTheMostLikely) {
  expect_near(shares({.temperature = 1, .top_k = 3}), softmax(1, {1, 2, 3}));
  expect_near(shares({.temperature = 1, .top_k = 1}), {{1, 1.0}});
  expect_near(shares({.temperature = 1, .top_k = 100}), softmax(1, {0, 1, 2, 3, 4}));
}

// p = 0.4 0.4 0.15 0.05 0: a mass of 0.5 needs two tokens, of 0.9 three.
TEST(Sampler, TopPKeepsTheSmallestSetThatReachesIt) {
  expect_near(shares({.temperature = 1, .top_p = 0.3}), {{1, 1.0}});
  expect_near(shares({.temperature = 1, .top_p = 0.5}), softmax(1, {1, 3}));
  expect_near(shares({.temperature = 1, .top_p = 0.9}), softmax(1, {1, 2, 3}));
  expect_near(shares({.temperature = 1, .top_p = 0}), {{1, 1.0}});
  expect_near(shares({.temperature = 1, .top_k = 2, .top_p = 0.9}), softmax(1, {1, 3}));
}

TEST(Sampler, TheSeedDecides) {
  const auto draws = [](uint64_t seed) {
    Sampler sampler({.temperature = 1, .seed = seed});
    std::vector<int32_t> ids;
    for (int i = 0; i < 50; ++i) ids.push_back(sampler.next(kLogits));
    return ids;
  };
  EXPECT_EQ(draws(1), draws(1));
  EXPECT_NE(draws(1), draws(2));
}

TEST(Sampler, ANanIsAnErrorAndInfinityIsNot) {
  EXPECT_THAT(refusal([] {
                Sampler({}).next(std::vector<float>{1, std::numeric_limits<float>::quiet_NaN()});
              }),
              ::testing::HasSubstr("the logit of token 1 is NaN"));
  const float low = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(Sampler({.temperature = 1}).next(std::vector<float>{low, 0, low}), 1);
}

}  // namespace
}  // namespace cmoe

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "moe/router.h"
#include "support/refusal.h"

namespace cmoe {
namespace {

using ::testing::ElementsAre;

Tensor tensor(const Shape& shape, const std::vector<float>& values) {
  Tensor result(DType::f32, shape);
  std::copy(values.begin(), values.end(), result.data<float>());
  return result;
}

double silu(double v) { return v / (1 + std::exp(-v)); }

const std::shared_ptr<const Backend>& backend() {
  static const std::shared_ptr<const Backend> instance = make_cpu_backend();
  return instance;
}

// Two experts, d = 3; a router of any kind needs only the number of experts for select_experts().
Router router_of(Selector selector, int64_t experts) {
  Router router{.selector = selector};
  router.weight = backend()->prepare(Tensor::zeros(DType::f32, {experts, 3}), DType::f32);
  return router;
}

TEST(RouterScores, FollowTheirFormulas) {
  const Tensor x = tensor({2, 3}, {1, -2, 0.5f, 0, 3, -1});
  const Tensor a = tensor({2, 3}, {0.5f, 1, -1, 2, 0, 1}), b = tensor({2, 3}, {1, 1, 1, -1, 0.25f, 0});
  const auto dot = [&](const Tensor& w, int64_t j, int64_t t) {
    double sum = 0;
    for (int64_t i = 0; i < 3; ++i) sum += static_cast<double>(w.row<float>(j)[i]) * x.row<float>(t)[i];
    return sum;
  };
  Router linear{.kind = RouterKind::linear, .weight = backend()->prepare(a, DType::f32), .bias = tensor({2}, {0.5f, -4})};
  Router analytical{.kind = RouterKind::analytical};
  analytical.gate_proj = backend()->prepare(a, DType::f32);
  analytical.up_proj = backend()->prepare(b, DType::f32);
  Router authors = analytical;
  authors.kind = RouterKind::authors;
  for (int64_t t = 0; t < 2; ++t) {
    for (int64_t j = 0; j < 2; ++j) {
      EXPECT_NEAR(router_scores(*backend(), linear, x).row<float>(t)[j], dot(a, j, t) + (j == 0 ? 0.5 : -4), 1e-5);
      const double product = silu(dot(a, j, t)) * dot(b, j, t);
      EXPECT_NEAR(router_scores(*backend(), analytical, x).row<float>(t)[j], product, 1e-5);
      EXPECT_NEAR(router_scores(*backend(), authors, x).row<float>(t)[j], std::abs(product), 1e-5);
    }
  }
  EXPECT_EQ(router_scores(*backend(), linear, Tensor(DType::f32, {0, 3})).dim(0), 0);
}

TEST(SelectExperts, TopKIsAscendingAndTiesGoToTheSmallerIndex) {
  Router router = router_of(Selector::topk, 4);
  router.num_experts_per_tok = 2;
  const Routing routing = select_experts(router, tensor({4, 4}, {1, 4, 2, 3, 5, 5, 5, 5, -1, -2, -1, -1, 0, 0, 0, 1}));
  EXPECT_EQ(routing.tokens(), 4);
  EXPECT_THAT(routing.experts(0), ElementsAre(1, 3));
  EXPECT_THAT(routing.experts(1), ElementsAre(0, 1));
  EXPECT_THAT(routing.experts(2), ElementsAre(0, 2));
  EXPECT_THAT(routing.experts(3), ElementsAre(0, 3));
  EXPECT_THAT(routing.weight, ::testing::Each(1.0f));
  EXPECT_THAT(routing.expert_offset, ElementsAre(0, 2, 4, 6, 8));
  router.num_experts_per_tok = 0;
  EXPECT_TRUE(select_experts(router, tensor({1, 4}, {1, 2, 3, 4})).expert_idx.empty());
  router.num_experts_per_tok = 9;
  EXPECT_EQ(select_experts(router, tensor({1, 4}, {1, 2, 3, 4})).expert_idx.size(), 4u);
}

TEST(SelectExperts, TheThresholdIsReachedByEqualScoresAndRowsAreRagged) {
  Router router = router_of(Selector::threshold, 3);
  router.threshold = 0.5f;
  const Routing routing = select_experts(router, tensor({3, 3}, {0.5f, 0.4999f, 2, 0, 0, 0, 1, 1, 1}));
  EXPECT_THAT(routing.experts(0), ElementsAre(0, 2));
  EXPECT_TRUE(routing.experts(1).empty());
  EXPECT_THAT(routing.experts(2), ElementsAre(0, 1, 2));
  EXPECT_THAT(routing.expert_offset, ElementsAre(0, 2, 2, 5));
}

TEST(SelectExperts, TheSelectionBiasChoosesButDoesNotWeigh) {
  Router router = router_of(Selector::topk, 3);
  router.num_experts_per_tok = 1;
  router.selection_bias = tensor({3}, {0, 0, 10});
  router.scale = tensor({3}, {1, 2, 4});
  const Routing routing = select_experts(router, tensor({1, 3}, {3, 1, 0}));
  ASSERT_THAT(routing.experts(0), ElementsAre(2));
  // g = 1 + softmax(s)_2 u_2
  EXPECT_NEAR(routing.weight[0], 1 + 4 * 1 / (std::exp(3.0) + std::exp(1.0) + 1), 1e-6);
  router.selector = Selector::threshold;
  router.threshold = 5;
  EXPECT_THAT(select_experts(router, tensor({1, 3}, {3, 1, 0})).experts(0), ElementsAre(2));
}

TEST(SelectExperts, LargeScoresKeepFiniteWeights) {
  Router router = router_of(Selector::topk, 2);
  router.num_experts_per_tok = 2;
  router.scale = tensor({2}, {1, 1});
  const Routing routing = select_experts(router, tensor({1, 2}, {1e30f, -1e30f}));
  EXPECT_THAT(routing.weight, ElementsAre(2.0f, 1.0f));
}

TEST(SelectExperts, ANanIsAnError) {
  const Router router = router_of(Selector::topk, 2);
  EXPECT_THAT(refusal([&] {
                select_experts(router, tensor({2, 2}, {1, 2, 3, std::numeric_limits<float>::quiet_NaN()}));
              }),
              ::testing::HasSubstr("score of expert 1 is NaN at token 1"));
}

}  // namespace
}  // namespace cmoe

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "carve/layer.h"
#include "small_layer.h"
#include "support/world.h"

namespace cmoe {
namespace {

const ExpertShape kShape{.shared = 2, .active = 2, .experts = 6};  // 48 neurons, m = 8

CarvedLayer carve(const SmallLayer& small, const Recipe& recipe, const ExpertShape& shape, Communicator& comm) {
  const LayerActivations activations = small.activations(comm, recipe.marker);
  return carve_layer(*small.backend, recipe, shape, small.dense, activations, small.statistics(activations, comm), 0, 7, comm);
}

std::string all_bytes(const CarvedLayer& layer) {
  std::string bytes;
  for (const Tensor* tensor : {&layer.router_weight, &layer.router_bias, &layer.router_gate, &layer.router_up, &layer.down,
                               &layer.compensation_bias, &layer.expert_bias}) {
    if (tensor->size() > 0) bytes += bytes_of(*tensor);
  }
  return bytes;
}

TEST(CarveLayer, IsTheSameOnAnyNumberOfRanks) {
  const SmallLayer small;
  const auto alone = test_world().split(test_world().rank());
  for (const std::string& name : recipe_names()) {
    SCOPED_TRACE(name);
    const Recipe recipe = recipe_by_name(name);
    const CarvedLayer many = carve(small, recipe, kShape, test_world()), one = carve(small, recipe, kShape, *alone);
    EXPECT_EQ(many.shared, one.shared);
    EXPECT_EQ(many.experts, one.experts);
    EXPECT_EQ(many.threshold, one.threshold);
    EXPECT_TRUE(all_bytes(many) == all_bytes(one));
    EXPECT_EQ(many.shared.size(), recipe.routed ? 16u : 32u);
    EXPECT_EQ(many.experts.size(), recipe.routed ? 4u : 0u);
  }
}

// Any recipe with the threshold selector: the calibration tokens take A experts in the mean, to the pair (equal scores aside).
TEST(CarveLayer, TheThresholdKeepsTheMeanNumberOfExperts) {
  const SmallLayer small;
  for (RouterKind router : {RouterKind::linear, RouterKind::analytical, RouterKind::authors}) {
    for (int64_t active : {1, 2, 3, 4}) {
      Recipe recipe = recipe_by_name("best");
      recipe.router = router;
      recipe.selector = Selector::threshold;
      const ExpertShape shape{.shared = 2, .active = active, .experts = 6};
      const CarvedLayer layer = carve(small, recipe, shape, test_world());
      const Routing routing = calibration_routing(*small.backend, layer, shape, small.activations(test_world()).input);
      std::vector<int64_t> pairs{static_cast<int64_t>(routing.expert_idx.size())};
      test_world().all_reduce_sum(pairs);
      EXPECT_EQ(pairs[0], small.tokens() * active) << name_of(router);
    }
  }
}

// Also tokens that the calibration never saw.
TEST(CarveLayer, AllOrNoneOfTheExpertsIsAThresholdOfNoScore) {
  const SmallLayer small;
  Tensor unseen = random_tensor({200, small.d}, 77);
  for (float& v : unseen.span<float>()) v *= 100;
  for (int64_t active : {0, 4}) {
    const ExpertShape shape{.shared = 2, .active = active, .experts = 6};
    const CarvedLayer layer = carve(small, recipe_by_name("best"), shape, test_world());
    EXPECT_EQ(static_cast<int64_t>(calibration_routing(*small.backend, layer, shape, unseen).expert_idx.size()), 200 * active);
  }
}

TEST(CarveLayer, TopKTakesAExpertsOfEveryToken) {
  const SmallLayer small;
  const CarvedLayer layer = carve(small, recipe_by_name("paper"), kShape, test_world());
  const LayerActivations activations = small.activations(test_world());
  const Routing routing = calibration_routing(*small.backend, layer, kShape, activations.input);
  for (int64_t t = 0; t < routing.tokens(); ++t) EXPECT_EQ(routing.experts(t).size(), 2u);
}

// x + the carved output, against the definition token by token.
TEST(CarveLayer, TheCarvedOutputIsThatOfTheDefinition) {
  const SmallLayer small;
  const auto alone = test_world().split(test_world().rank());
  const auto h = small.plain_h();
  for (const char* compensation : {"none", "mean", "refit"}) {
    Recipe recipe = recipe_by_name("best");
    recipe.compensation = parse_compensation(compensation);
    const CarvedLayer layer = carve(small, recipe, kShape, *alone);
    const LayerActivations activations = small.activations(*alone);
    const Routing routing = calibration_routing(*small.backend, layer, kShape, activations.input);
    Tensor x = random_tensor({small.tokens(), small.d}, 99);
    const Tensor before = x.clone();
    add_carved_output(*small.backend, layer, DType::f32, activations, routing, x);
    for (int64_t t = 0; t < small.tokens(); ++t) {
      for (int64_t row = 0; row < small.d; ++row) {
        double expected = before.row<float>(t)[row];
        const auto add = [&](const std::vector<int32_t>& neurons) {
          for (int32_t i : neurons)
            expected += h[static_cast<size_t>(t)][static_cast<size_t>(i)] * layer.down.row<float>(row)[i];
        };
        add(layer.shared);
        if (layer.compensation_bias.size() > 0) expected += layer.compensation_bias.data<float>()[row];
        for (int32_t e : routing.experts(t)) {
          add(layer.experts[static_cast<size_t>(e)]);
          if (layer.expert_bias.size() > 0) expected += layer.expert_bias.row<float>(e)[row];
        }
        EXPECT_NEAR(x.row<float>(t)[row], expected, 1e-4) << compensation;
      }
    }
  }
}

TEST(CarveLayer, EverySharedOrActiveIsTheDenseFfn) {
  const SmallLayer small;
  const auto alone = test_world().split(test_world().rank());
  const LayerActivations activations = small.activations(*alone);
  Tensor dense = Tensor::zeros(DType::f32, {small.tokens(), small.d});
  add_down(*small.backend, ObservedFfn(*small.backend, small.dense, DType::f32), activations.h, dense);
  for (const ExpertShape shape : {ExpertShape{2, 4, 6}, ExpertShape{0, 6, 6}, ExpertShape{6, 0, 6}}) {
    for (const std::string& name : recipe_names()) {
      Recipe recipe = recipe_by_name(name);
      const CarvedLayer layer = carve(small, recipe, shape, *alone);
      Tensor x = Tensor::zeros(DType::f32, dense.shape());
      add_carved_output(*small.backend, layer, DType::f32, activations,
                        calibration_routing(*small.backend, layer, shape, activations.input), x);
      for (int64_t i = 0; i < x.size(); ++i)
        ASSERT_NEAR(x.data<float>()[i], dense.data<float>()[i], 1e-4) << name << " " << to_string(shape);
    }
  }
}

}  // namespace
}  // namespace cmoe

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "carve/fit_router.h"
#include "small_layer.h"
#include "support/world.h"

namespace cmoe {
namespace {

// As in make_router_golden.py.
float value(int64_t i) { return static_cast<float>((i * 7919 + 13) % 1009) / 512.0f - 1.0f; }

TEST(LinearRouter, EqualsNumpyOnAnyNumberOfRanks) {
  constexpr int64_t kTokens = 40, kD = 6, kExperts = 3, kLength = 8;
  Communicator& world = test_world();
  const auto alone = world.split(world.rank());
  Tensor input(DType::f32, {kTokens, kD}), norms(DType::f32, {kTokens, kExperts});
  for (int64_t i = 0; i < input.size(); ++i) input.data<float>()[i] = value(i);
  for (int64_t i = 0; i < norms.size(); ++i) norms.data<float>()[i] = std::abs(value(100000 + i));
  const auto fit = [&](Communicator& comm) {
    const auto [begin, end] = shard_of(kTokens / kLength, comm.rank(), comm.size());
    CarvedLayer layer;
    fit_linear_router(*make_cpu_backend(), input.rows(begin * kLength, end * kLength),
                      norms.rows(begin * kLength, end * kLength), 1e-2,
                      TokenChunks::of_sequences(end - begin, kTokens / kLength, kLength), comm, layer);
    return layer;
  };
  const CarvedLayer many = fit(world), one = fit(*alone);
  EXPECT_EQ(bytes_of(many.router_weight), bytes_of(one.router_weight));
  EXPECT_EQ(bytes_of(many.router_bias), bytes_of(one.router_bias));
  std::ifstream golden(CMOE_SOURCE_DIR "/tests/carve/router_golden.txt");
  double expected = 0;
  for (int64_t i = 0; i < kExperts * kD; ++i) {
    ASSERT_TRUE(golden >> expected);
    EXPECT_NEAR(one.router_weight.data<float>()[i], expected, 1e-5) << "weight " << i;
  }
  for (int64_t j = 0; j < kExperts; ++j) {
    ASSERT_TRUE(golden >> expected);
    EXPECT_NEAR(one.router_bias.data<float>()[j], expected, 1e-5) << "bias " << j;
  }
}

// Experts of 4 (the quadratic form is cheaper) and of 16 neurons (the output is), d = 12.
TEST(ExpertOutputNorms, AreTheLengthsOfTheOutputs) {
  const SmallLayer small;
  const LayerActivations activations = small.activations(*test_world().split(test_world().rank()));
  const std::vector<std::vector<int32_t>> experts{{1, 5, 9, 40}, {0, 2, 3, 4, 6, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18}};
  const Tensor norms = expert_output_norms(*small.backend, activations.h, small.dense.down, experts);
  for (int64_t t = 0; t < small.tokens(); ++t) {
    for (size_t e = 0; e < experts.size(); ++e) {
      double square = 0;
      for (int64_t row = 0; row < small.d; ++row) {
        double y = 0;
        for (int32_t i : experts[e])
          y += static_cast<double>(small.dense.down.row<float>(row)[i]) * activations.h.row<float>(t)[i];
        square += y * y;
      }
      EXPECT_NEAR(norms.row<float>(t)[e], std::sqrt(square), 1e-4);
    }
  }
}

TEST(AnalyticalRouter, TakesTheRowsOfTheRepresentatives) {
  const SmallLayer small;
  const std::vector<int32_t> representatives{7, 0, 31};
  for (RouterKind kind : {RouterKind::analytical, RouterKind::authors}) {
    CarvedLayer layer{.router_kind = kind};
    build_analytical_router(small.dense, representatives, layer);
    ASSERT_EQ(layer.router_gate.shape(), (Shape{3, small.d}));
    ASSERT_EQ(layer.router_up.shape(), (Shape{3, small.d}));
    for (int64_t j = 0; j < 3; ++j) {
      for (const auto& [found, dense] : {std::pair(layer.router_gate, small.dense.gate), {layer.router_up, small.dense.up}}) {
        const float* row = dense.row<float>(representatives[static_cast<size_t>(j)]);
        double square = 0;
        for (int64_t i = 0; i < small.d; ++i) square += static_cast<double>(row[i]) * row[i];
        const double scale = kind == RouterKind::authors ? 1 / std::sqrt(square) : 1;
        for (int64_t i = 0; i < small.d; ++i) EXPECT_FLOAT_EQ(found.row<float>(j)[i], static_cast<float>(row[i] * scale));
      }
    }
  }
}

TEST(PrepareRouter, ScoresAsTheLayerSays) {
  const SmallLayer small;
  CarvedLayer layer{.router_kind = RouterKind::linear, .selector = Selector::threshold};
  layer.router_weight = random_tensor({3, small.d}, 8);
  layer.router_bias = random_tensor({3}, 9);
  layer.threshold = 0.25f;
  const Router router = prepare_router(*small.backend, layer, {.shared = 1, .active = 2, .experts = 4});
  EXPECT_EQ(router.num_experts(), 3);
  EXPECT_EQ(router.num_experts_per_tok, 2);
  EXPECT_EQ(router.threshold, 0.25f);
  const Tensor scores = router_scores(*small.backend, router, small.input);
  for (int64_t t = 0; t < small.tokens(); ++t) {
    for (int64_t j = 0; j < 3; ++j) {
      double expected = layer.router_bias.data<float>()[j];
      for (int64_t i = 0; i < small.d; ++i)
        expected += static_cast<double>(layer.router_weight.row<float>(j)[i]) * small.input.row<float>(t)[i];
      EXPECT_NEAR(scores.row<float>(t)[j], expected, 1e-5);
    }
  }
}

}  // namespace
}  // namespace cmoe

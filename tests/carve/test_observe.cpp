#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "base/parallel.h"
#include "carve/observe.h"
#include "small_layer.h"
#include "support/refusal.h"
#include "support/world.h"

namespace cmoe {
namespace {

// The k_act largest |values| of a row, ascending.
std::vector<int32_t> largest(const std::vector<double>& values, int64_t k) {
  std::vector<int32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return std::abs(values[static_cast<size_t>(a)]) > std::abs(values[static_cast<size_t>(b)]);
  });
  order.resize(static_cast<size_t>(k));
  std::sort(order.begin(), order.end());
  return order;
}

std::vector<int32_t> row(const std::vector<int32_t>& markers, int64_t token, int64_t k) {
  return {markers.begin() + token * k, markers.begin() + (token + 1) * k};
}

TEST(Observe, ActivationsAndBothMarkersEqualAPlainComputation) {
  const SmallLayer small;
  constexpr std::array<Marker, 2> kBoth{Marker::raw, Marker::normalized};
  const FfnActivations seen =
      observe_ffn(*small.backend, ObservedFfn(*small.backend, small.dense, DType::f32), small.input, small.k_act, kBoth);
  const auto h = small.plain_h();
  const auto unit = [](const float* v, int64_t n) {
    double square = 0;
    for (int64_t i = 0; i < n; ++i) square += static_cast<double>(v[i]) * v[i];
    std::vector<double> result;
    for (int64_t i = 0; i < n; ++i) result.push_back(v[i] / std::max(std::sqrt(square), 1e-12));
    return result;
  };
  const auto dot = [](const std::vector<double>& a, const std::vector<double>& b) {
    return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
  };
  for (int64_t t = 0; t < small.tokens(); ++t) {
    const auto at = static_cast<size_t>(t);
    for (int64_t i = 0; i < small.f; ++i) EXPECT_NEAR(seen.h.row<float>(t)[i], h[at][static_cast<size_t>(i)], 1e-5);
    EXPECT_EQ(row(seen.raw_markers, t, small.k_act), largest(h[at], small.k_act)) << "token " << t;
    std::vector<double> normalized;
    for (int64_t i = 0; i < small.f; ++i) {
      const auto x = unit(small.input.row<float>(t), small.d);
      const double g = dot(x, unit(small.dense.gate.row<float>(i), small.d));
      normalized.push_back(g / (1 + std::exp(-g)) * dot(x, unit(small.dense.up.row<float>(i), small.d)));
    }
    EXPECT_EQ(row(seen.normalized_markers, t, small.k_act), largest(normalized, small.k_act)) << "token " << t;
  }
}

TEST(Observe, RowsOfZerosAreOrdinary) {
  SmallLayer small;
  std::fill_n(small.input.row<float>(3), small.d, 0.0f);
  std::fill_n(small.dense.gate.row<float>(7), small.d, 0.0f);
  constexpr std::array<Marker, 1> kNormalized{Marker::normalized};
  const FfnActivations seen =
      observe_ffn(*small.backend, ObservedFfn(*small.backend, small.dense, DType::f32), small.input, small.k_act, kNormalized);
  EXPECT_TRUE(seen.raw_markers.empty());
  EXPECT_EQ(row(seen.normalized_markers, 3, small.k_act),
            (std::vector<int32_t>{0, 1, 2, 3, 4}));  // all equal: smallest indices
}

TEST(Observe, ANanNamesTokenAndNeuron) {
  SmallLayer small;
  small.dense.up.row<float>(9)[2] = std::numeric_limits<float>::quiet_NaN();
  constexpr std::array<Marker, 1> kRaw{Marker::raw};
  EXPECT_THAT(refusal([&] {
                observe_ffn(*small.backend, ObservedFfn(*small.backend, small.dense, DType::f32), small.input, small.k_act,
                            kRaw);
              }),
              ::testing::AllOf(::testing::HasSubstr("token 0"), ::testing::HasSubstr("neuron 9")));
}

TEST(Observe, StatisticsAreRightAndTheSameOnAnyNumberOfRanks) {
  const SmallLayer small;
  Communicator& world = test_world();
  const auto alone = world.split(world.rank());
  const NeuronStatistics many = small.statistics(small.activations(world), world);
  const NeuronStatistics one = small.statistics(small.activations(*alone), *alone);
  EXPECT_EQ(many.tokens, small.tokens());
  EXPECT_EQ(many.mean, one.mean);
  EXPECT_EQ(many.second_moment, one.second_moment);
  EXPECT_EQ(many.mean_abs, one.mean_abs);
  EXPECT_EQ(many.marked, one.marked);
  EXPECT_EQ(std::accumulate(many.marked.begin(), many.marked.end(), int64_t{0}), small.tokens() * small.k_act);
  const auto h = small.plain_h();
  for (size_t i = 0; i < static_cast<size_t>(small.f); ++i) {
    double mean = 0, square = 0, mean_abs = 0;
    for (const auto& token : h) {
      mean += token[i] / static_cast<double>(h.size());
      square += token[i] * token[i] / static_cast<double>(h.size());
      mean_abs += std::abs(token[i]) / static_cast<double>(h.size());
    }
    EXPECT_NEAR(many.mean[i], mean, 1e-6);
    EXPECT_NEAR(many.second_moment[i], square, 1e-6);
    EXPECT_NEAR(many.mean_abs[i], mean_abs, 1e-6);
  }
}

TEST(Observe, AddDownIsTheFfnsOutput) {
  const SmallLayer small;
  const ObservedFfn ffn(*small.backend, small.dense, DType::f32);
  const LayerActivations activations = small.activations(*test_world().split(test_world().rank()));
  Tensor y = Tensor::zeros(DType::f32, {small.tokens(), small.d});
  std::fill_n(y.data<float>(), y.size(), 2.0f);
  add_down(*small.backend, ffn, activations.h, y);
  const auto h = small.plain_h();
  for (int64_t t = 0; t < small.tokens(); ++t) {
    for (int64_t j = 0; j < small.d; ++j) {
      double expected = 2;
      for (int64_t i = 0; i < small.f; ++i)
        expected += h[static_cast<size_t>(t)][static_cast<size_t>(i)] * small.dense.down.row<float>(j)[i];
      EXPECT_NEAR(y.row<float>(t)[j], expected, 1e-4);
    }
  }
}

}  // namespace
}  // namespace cmoe

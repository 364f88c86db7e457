#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "carve/columns.h"
#include "carve/compensate.h"
#include "small_layer.h"
#include "support/world.h"

namespace cmoe {
namespace {

using Rows = std::vector<std::vector<double>>;

// Neurons 0..15 shared, three routed experts of 8, and 8 neurons that are dropped for good; token t takes expert t % 3, and
// every fourth token expert 2 as well.
struct Case {
  SmallLayer small;
  std::vector<int32_t> expert_of;
  static constexpr int64_t kExperts = 3;

  Case() {
    for (int32_t i = 0; i < small.f; ++i) expert_of.push_back(i < 16 ? kSharedNeuron : i < 40 ? (i - 16) / 8 : kDroppedNeuron);
  }
  static bool takes(int64_t token, int64_t expert) { return expert == token % 3 || (expert == 2 && token % 4 == 0); }

  Routing routing(const Communicator& comm) const {
    const auto [begin, end] = shard_of(small.sequences, comm.rank(), comm.size());
    Routing routing;
    for (int64_t t = begin * small.length; t < end * small.length; ++t) {
      for (int32_t e = 0; e < kExperts; ++e) {
        if (takes(t, e)) routing.expert_idx.push_back(e), routing.weight.push_back(1);
      }
      routing.expert_offset.push_back(static_cast<int32_t>(routing.expert_idx.size()));
    }
    return routing;
  }
  bool runs(int64_t token, int64_t neuron) const {
    const int32_t e = expert_of[static_cast<size_t>(neuron)];
    return e == kSharedNeuron || (e >= 0 && takes(token, e));
  }
  CarvedLayer layer() const {
    CarvedLayer layer{.down = small.dense.down};
    layer.experts.resize(kExperts);
    for (int32_t i = 16; i < 40; ++i) layer.experts[static_cast<size_t>((i - 16) / 8)].push_back(i);
    return layer;
  }
  CarvedLayer mean(Communicator& comm) const {
    const LayerActivations activations = small.activations(comm);
    const Routing taken = routing(comm);
    CarvedLayer result = layer();
    compensate_mean(small.dense, activations, mask_activations(activations.h, expert_of, taken, kExperts), expert_of, taken,
                    comm, result);
    return result;
  }
  CarvedLayer refit(double lambda, Communicator& comm) const {
    const LayerActivations activations = small.activations(comm);
    CarvedLayer result = layer();
    compensate_refit(*small.backend, small.dense, activations, routing(comm), expert_of, lambda, comm, result);
    return result;
  }
  // y_t - yhat_t of every token: dense output less W m_t + c + the biases of the experts that run.
  Rows residual(const CarvedLayer& layer) const {
    const Rows h = small.plain_h();
    Rows rows(h.size(), std::vector<double>(static_cast<size_t>(small.d)));
    for (int64_t t = 0; t < small.tokens(); ++t) {
      for (int64_t row = 0; row < small.d; ++row) {
        double& r = rows[static_cast<size_t>(t)][static_cast<size_t>(row)];
        for (int64_t i = 0; i < small.f; ++i) {
          const double value = h[static_cast<size_t>(t)][static_cast<size_t>(i)];
          r += value * small.dense.down.row<float>(row)[i];
          if (runs(t, i)) r -= value * layer.down.row<float>(row)[i];
        }
        if (layer.compensation_bias.size() > 0) r -= layer.compensation_bias.data<float>()[row];
        for (int64_t e = 0; e < kExperts; ++e) {
          if (layer.expert_bias.size() > 0 && takes(t, e)) r -= layer.expert_bias.row<float>(e)[row];
        }
      }
    }
    return rows;
  }
};

double sum_of_squares(const Rows& rows) {
  double sum = 0;
  for (const auto& row : rows) {
    for (double v : row) sum += v * v;
  }
  return sum;
}

TEST(MeanCompensation, OfStaticNeuronsIsFlapsBias) {
  const Case test;
  const SmallLayer& small = test.small;
  std::vector<int32_t> expert_of(static_cast<size_t>(small.f), kSharedNeuron);
  for (size_t i = 30; i < expert_of.size(); ++i) expert_of[i] = kDroppedNeuron;
  const LayerActivations activations = small.activations(test_world());
  Routing none;
  none.expert_offset.assign(static_cast<size_t>(activations.h.dim(0)) + 1, 0);
  CarvedLayer layer{.down = small.dense.down};
  compensate_mean(small.dense, activations, mask_activations(activations.h, expert_of, none, 0), expert_of, none, test_world(),
                  layer);
  const Rows h = small.plain_h();
  for (int64_t row = 0; row < small.d; ++row) {
    double expected = 0;  // sum over the dropped i of W_d[row, i] E[h_i]
    for (const auto& token : h) {
      for (size_t i = 30; i < expert_of.size(); ++i)
        expected += token[i] * small.dense.down.row<float>(row)[i] / static_cast<double>(h.size());
    }
    EXPECT_NEAR(layer.compensation_bias.data<float>()[row], expected, 1e-5);
  }
  EXPECT_EQ(layer.expert_bias.size(), 0);
}

// Over the tokens that miss an expert, the mean of what it would have added is there.
TEST(MeanCompensation, LeavesNoMeanErrorWhereOneExpertIsMissing) {
  const Case test;
  const CarvedLayer layer = test.mean(test_world());
  ASSERT_EQ(layer.expert_bias.shape(), (Shape{Case::kExperts, test.small.d}));
  const Rows residual = test.residual(layer);
  for (size_t row = 0; row < static_cast<size_t>(test.small.d); ++row) {
    double sum = 0;
    for (const auto& token : residual) sum += token[row];
    EXPECT_NEAR(sum / static_cast<double>(residual.size()), 0, 1e-5);
  }
  EXPECT_LT(sum_of_squares(residual), sum_of_squares(test.residual(test.layer())));
}

TEST(Compensation, IsTheSameOnAnyNumberOfRanks) {
  const Case test;
  const auto alone = test_world().split(test_world().rank());
  const CarvedLayer mean = test.mean(test_world()), mean_alone = test.mean(*alone);
  EXPECT_EQ(bytes_of(mean.compensation_bias), bytes_of(mean_alone.compensation_bias));
  EXPECT_EQ(bytes_of(mean.expert_bias), bytes_of(mean_alone.expert_bias));
  const CarvedLayer refit = test.refit(1e-2, test_world()), refit_alone = test.refit(1e-2, *alone);
  EXPECT_EQ(bytes_of(refit.compensation_bias), bytes_of(refit_alone.compensation_bias));
  EXPECT_EQ(bytes_of(refit.down), bytes_of(refit_alone.down));
}

// The objective of compensate.h at V + step e, by finite differences: no direction leads down.
TEST(Refit, StandsWhereTheObjectiveIsFlat) {
  const Case test;
  constexpr double kLambda = 0.05;
  const CarvedLayer layer = test.refit(kLambda, *test_world().split(test_world().rank()));
  // mean diagonal of the centred Gram matrix of the activations of the 40 neurons that are kept
  const Rows h = test.small.plain_h();
  double trace = 0;
  for (int64_t i = 0; i < 40; ++i) {
    double sum = 0, square = 0;
    for (size_t t = 0; t < h.size(); ++t) {
      const double m = test.runs(static_cast<int64_t>(t), i) ? h[t][static_cast<size_t>(i)] : 0;
      sum += m;
      square += m * m;
    }
    trace += square - sum * sum / static_cast<double>(h.size());
  }
  const double ridge = kLambda * trace / 40;
  const auto objective = [&](const CarvedLayer& at) {
    double penalty = 0;
    for (int64_t k = 0; k < at.down.size(); ++k)
      penalty += std::pow(static_cast<double>(at.down.data<float>()[k]) - test.small.dense.down.data<float>()[k], 2);
    return sum_of_squares(test.residual(at)) + ridge * penalty;
  };
  const double here = objective(layer);
  EXPECT_LT(here, 0.9 * objective(test.layer()));
  constexpr float kStep = 0.0625f;  // a power of two: exact in f32
  const auto slope = [&](Tensor CarvedLayer::*field, int64_t at) {
    double value[2];
    for (int side = 0; side < 2; ++side) {
      CarvedLayer moved = layer;
      moved.*field = (layer.*field).clone();
      (moved.*field).data<float>()[at] += side == 0 ? kStep : -kStep;
      value[side] = objective(moved);
      EXPECT_GT(value[side], here);
    }
    return (value[0] - value[1]) / (2 * kStep);
  };
  for (const int64_t row : {0, 5, 11}) {
    for (const int64_t neuron : {0, 13, 16, 27, 39})
      EXPECT_NEAR(slope(&CarvedLayer::down, row * test.small.f + neuron), 0, 1e-3 * here);
    EXPECT_NEAR(slope(&CarvedLayer::compensation_bias, row), 0, 1e-3 * here);
  }
  for (int64_t row = 0; row < test.small.d; ++row) {
    for (int64_t i = 40; i < test.small.f; ++i)
      EXPECT_EQ(layer.down.row<float>(row)[i], test.small.dense.down.row<float>(row)[i]);
  }
}

TEST(Refit, AHugeRidgeLeavesOnlyTheMean) {
  const Case test;
  const CarvedLayer layer = test.refit(1e9, *test_world().split(test_world().rank()));
  for (int64_t i = 0; i < layer.down.size(); ++i)
    EXPECT_NEAR(layer.down.data<float>()[i], test.small.dense.down.data<float>()[i], 1e-6);
  const Rows missing = test.residual(test.layer());
  for (size_t row = 0; row < static_cast<size_t>(test.small.d); ++row) {
    double mean = 0;
    for (const auto& token : missing) mean += token[row] / static_cast<double>(missing.size());
    EXPECT_NEAR(layer.compensation_bias.data<float>()[row], mean, 1e-5);
  }
}

}  // namespace
}  // namespace cmoe

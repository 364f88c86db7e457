#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "carve/partition.h"
#include "carve/refine_energy.h"
#include "carve/select_neurons.h"
#include "small_layer.h"
#include "support/world.h"

namespace cmoe {
namespace {

const ExpertShape kShape{.shared = 1, .active = 2, .experts = 6};

NeuronPartition start_of(const SmallLayer& small) {
  NeuronPartition partition;
  for (int32_t i = 0; i < small.f; ++i) {
    if (i % 6 == 1) partition.shared.push_back(i);
  }
  partition.experts.resize(5);
  int32_t at = 0;
  for (const int32_t i : remaining_neurons(small.f, partition.shared))
    partition.experts[static_cast<size_t>(at++ % 5)].push_back(i);
  for (const auto& expert : partition.experts) partition.representatives.push_back(expert[0]);
  return partition;
}

// The weighted share of energy that a router who knows the experts' energies runs, from h in f64.
double captured_by_hand(const SmallLayer& small, const NeuronPartition& partition, Selector selector) {
  const auto h = small.plain_h();
  std::vector<double> norm(static_cast<size_t>(small.f), 0);
  for (int64_t j = 0; j < small.d; ++j) {
    for (int64_t i = 0; i < small.f; ++i) norm[static_cast<size_t>(i)] += std::pow(small.dense.down.row<float>(j)[i], 2);
  }
  std::vector<std::vector<double>> expert(h.size());
  std::vector<double> shared(h.size(), 0), weight(h.size()), all;
  double total = 0, runs = 0;
  for (size_t t = 0; t < h.size(); ++t) {
    const auto energy = [&](int32_t i) { return std::pow(h[t][static_cast<size_t>(i)], 2) * norm[static_cast<size_t>(i)]; };
    double sum = 0;
    for (int32_t i = 0; i < small.f; ++i) sum += energy(i);
    weight[t] = 1 / std::sqrt(sum);
    total += weight[t] * sum;
    for (const int32_t i : partition.shared) runs += weight[t] * energy(i);
    for (const auto& members : partition.experts) {
      double part = 0;
      for (const int32_t i : members) part += energy(i);
      expert[t].push_back(part);
      all.push_back(part);
    }
  }
  std::sort(all.begin(), all.end(), std::greater<>());
  for (size_t t = 0; t < h.size(); ++t) {
    std::vector<double> sorted = expert[t];
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    const double least = selector == Selector::topk ? sorted[1] : all[h.size() * 2 - 1];
    for (const double part : expert[t]) {
      if (part >= least) runs += weight[t] * part;
    }
  }
  return runs / total;
}

TEST(RefineEnergy, RaisesTheEnergyThatRuns) {
  const SmallLayer small;
  const LayerActivations activations = small.activations(test_world());
  const NeuronStatistics statistics = small.statistics(activations, test_world());
  for (const Selector selector : {Selector::topk, Selector::threshold}) {
    NeuronPartition partition = start_of(small);
    const double before = captured_by_hand(small, partition, selector);
    const std::vector<double> captured = refine_energy(*small.backend, {.energy_rounds = 20, .selector = selector}, kShape,
                                                       small.dense, activations, statistics, test_world(), partition);
    ASSERT_GE(captured.size(), 2u);
    EXPECT_NEAR(captured[0], before, 1e-5);
    EXPECT_GT(captured.back(), before + 0.02);
    EXPECT_NEAR(captured.back(), captured_by_hand(small, partition, selector), 1e-5);  // it ended because nothing moved
    if (selector == Selector::topk) {
      EXPECT_TRUE(std::is_sorted(captured.begin(), captured.end()));
    }
    // Sizes stay, and every neuron is somewhere.
    std::set<int32_t> seen(partition.shared.begin(), partition.shared.end());
    EXPECT_EQ(partition.shared.size(), 8u);
    for (size_t e = 0; e < 5; ++e) {
      EXPECT_EQ(partition.experts[e].size(), 8u);
      EXPECT_TRUE(std::is_sorted(partition.experts[e].begin(), partition.experts[e].end()));
      EXPECT_TRUE(std::binary_search(partition.experts[e].begin(), partition.experts[e].end(), partition.representatives[e]));
      seen.insert(partition.experts[e].begin(), partition.experts[e].end());
    }
    EXPECT_EQ(seen.size(), static_cast<size_t>(small.f));
  }
}

// Neurons that fire on their group's tokens alone, and some that always do, start in the wrong groups.
TEST(RefineEnergy, FindsPlantedExperts) {
  SmallLayer small;
  LayerActivations activations = small.activations(test_world());
  const NeuronStatistics statistics = small.statistics(activations, test_world());
  const auto [first, last] = shard_of(small.sequences, test_world().rank(), test_world().size());
  activations.h = Tensor::zeros(DType::f32, {(last - first) * small.length, small.f});
  for (float& w : small.dense.down.span<float>()) w = 1;
  // Neuron i belongs to group i mod 6, of which group 5 always runs; at token t groups t mod 5 and (t + 1) mod 5 fire.
  for (int64_t t = 0; t < activations.h.dim(0); ++t) {
    const int64_t token = first * small.length + t;
    for (int64_t i = 0; i < small.f; ++i) {
      const int64_t own = i % 6;
      if (own == 5 || own == token % 5 || own == (token + 1) % 5)
        activations.h.row<float>(t)[i] = 1 + 0.1f * static_cast<float>((i * 7 + token) % 5);
    }
  }
  NeuronPartition partition = start_of(small);
  // Two neurons of every expert are exchanged with another's, two of the first with the shared expert's.
  for (auto& expert : partition.experts) expert.clear();
  partition.shared.clear();
  for (int32_t i = 0; i < small.f; ++i) {
    int32_t own = i % 6;
    if (i < 12) own = (own + 1) % 6;
    (own == 5 ? partition.shared : partition.experts[static_cast<size_t>(own)]).push_back(i);
  }
  refine_energy(*small.backend, {.energy_rounds = 20, .selector = Selector::topk}, kShape, small.dense, activations, statistics,
                test_world(), partition);
  for (const int32_t i : partition.shared) EXPECT_EQ(i % 6, 5);
  for (const auto& expert : partition.experts) {
    for (const int32_t i : expert) EXPECT_EQ(i % 6, expert[0] % 6);
  }
}

TEST(RefineEnergy, IsTheSameOnAnyNumberOfRanks) {
  const SmallLayer small;
  const auto alone = test_world().split(test_world().rank());
  for (const Representative representative : {Representative::nearest, Representative::highest_rate}) {
    const Recipe recipe{.representative = representative};
    std::vector<NeuronPartition> found;
    std::vector<std::vector<double>> captured;
    for (Communicator* comm : {&test_world(), alone.get()}) {
      const LayerActivations activations = small.activations(*comm);
      const NeuronStatistics statistics = small.statistics(activations, *comm);
      found.push_back(start_of(small));
      captured.push_back(
          refine_energy(*small.backend, recipe, kShape, small.dense, activations, statistics, *comm, found.back()));
    }
    EXPECT_EQ(captured[0], captured[1]);
    EXPECT_EQ(found[0].shared, found[1].shared);
    EXPECT_EQ(found[0].experts, found[1].experts);
    EXPECT_EQ(found[0].representatives, found[1].representatives);
  }
}

TEST(RefineEnergy, LeavesAPartitionAloneThatNothingDependsOn) {
  const SmallLayer small;
  const LayerActivations activations = small.activations(test_world());
  const NeuronStatistics statistics = small.statistics(activations, test_world());
  for (const auto& [active, rounds] : {std::pair<int64_t, int64_t>{0, 12}, {5, 12}, {2, 0}}) {
    NeuronPartition partition = start_of(small);
    const ExpertShape shape{.shared = 1, .active = active, .experts = 6};
    EXPECT_TRUE(refine_energy(*small.backend, {.energy_rounds = rounds}, shape, small.dense, activations, statistics,
                              test_world(), partition)
                    .empty());
    EXPECT_EQ(partition.experts, start_of(small).experts);
  }
}

}  // namespace
}  // namespace cmoe

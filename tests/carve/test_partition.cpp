#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "carve/partition.h"
#include "carve/select_neurons.h"
#include "small_layer.h"
#include "support/world.h"

namespace cmoe {
namespace {

constexpr Partition kAll[] = {Partition::markers_l1, Partition::markers_squared_l2, Partition::markers_l2,
                              Partition::cosine,     Partition::contiguous,         Partition::random};

// 8 neurons stay out (shared), 40 go into 5 experts of 8.
struct Case {
  SmallLayer small;
  std::vector<int32_t> candidates;

  Case() {
    for (int32_t i = 0; i < small.f; ++i) {
      if (i % 6 != 1) candidates.push_back(i);
    }
  }
  Partitioned partition(const Recipe& recipe, Communicator& comm, uint64_t seed = 0, int64_t layer = 0) const {
    const LayerActivations activations = small.activations(comm);
    return partition_neurons(*small.backend, recipe, candidates, 5, small.dense, activations,
                             small.statistics(activations, comm), seed, layer, comm);
  }
};

TEST(Partition, ExpertsAreBalancedDisjointAndCoverTheCandidates) {
  const Case test;
  ASSERT_EQ(test.candidates.size(), 40u);
  for (Partition partition : kAll) {
    SCOPED_TRACE(name_of(partition));
    const Partitioned parts = test.partition({.partition = partition}, test_world());
    std::vector<int32_t> all;
    ASSERT_EQ(parts.experts.size(), 5u);
    ASSERT_EQ(parts.representatives.size(), 5u);
    for (size_t e = 0; e < 5; ++e) {
      EXPECT_EQ(parts.experts[e].size(), 8u);
      EXPECT_TRUE(std::is_sorted(parts.experts[e].begin(), parts.experts[e].end()));
      EXPECT_TRUE(std::binary_search(parts.experts[e].begin(), parts.experts[e].end(), parts.representatives[e]));
      all.insert(all.end(), parts.experts[e].begin(), parts.experts[e].end());
    }
    std::sort(all.begin(), all.end());
    EXPECT_EQ(all, test.candidates);
  }
}

TEST(Partition, IsTheSameOnAnyNumberOfRanks) {
  const Case test;
  const auto alone = test_world().split(test_world().rank());
  for (Partition partition : kAll) {
    for (Representative representative : {Representative::nearest, Representative::highest_rate}) {
      const Recipe recipe{.partition = partition, .representative = representative};
      const Partitioned many = test.partition(recipe, test_world()), one = test.partition(recipe, *alone);
      EXPECT_EQ(many.experts, one.experts) << name_of(partition);
      EXPECT_EQ(many.representatives, one.representatives) << name_of(partition);
    }
  }
}

TEST(Partition, BaselinesCutBlocks) {
  const Case test;
  const Partitioned contiguous = test.partition({.partition = Partition::contiguous}, test_world());
  for (size_t e = 0; e < 5; ++e) {
    EXPECT_EQ(contiguous.experts[e], std::vector<int32_t>(test.candidates.begin() + static_cast<ptrdiff_t>(8 * e),
                                                          test.candidates.begin() + static_cast<ptrdiff_t>(8 * e + 8)));
  }
  const auto random = [&](uint64_t seed, int64_t layer) {
    return test.partition({.partition = Partition::random}, test_world(), seed, layer).experts;
  };
  EXPECT_EQ(random(1, 2), random(1, 2));
  EXPECT_NE(random(1, 2), random(1, 3));
  EXPECT_NE(random(1, 2), random(2, 2));
  EXPECT_NE(random(1, 2), contiguous.experts);
}

TEST(Partition, TheRepresentativeOfHighestRateIsTheMostMarked) {
  const Case test;
  const LayerActivations activations = test.small.activations(test_world());
  const NeuronStatistics statistics = test.small.statistics(activations, test_world());
  for (Partition partition : kAll) {
    const Partitioned parts =
        test.partition({.partition = partition, .representative = Representative::highest_rate}, test_world());
    for (size_t e = 0; e < 5; ++e) {
      for (int32_t i : parts.experts[e]) {
        const int64_t mine = statistics.marked[static_cast<size_t>(i)];
        const int64_t chosen = statistics.marked[static_cast<size_t>(parts.representatives[e])];
        EXPECT_TRUE(mine < chosen || (mine == chosen && i >= parts.representatives[e])) << name_of(partition);
      }
    }
  }
}

// docs/algorithm.md: on sparse markers a neuron that no token marks lies nearest to the mean of its cluster.
TEST(Partition, TheNearestRepresentativeIsANeuronThatNoTokenMarks) {
  Case test;
  test.small.k_act = 1;
  const LayerActivations activations = test.small.activations(test_world());
  const NeuronStatistics statistics = test.small.statistics(activations, test_world());
  int found = 0;
  const Partitioned parts = test.partition({.partition = Partition::markers_l1, .iterations = 1}, test_world());
  for (size_t e = 0; e < 5; ++e) {
    const auto never = std::find_if(parts.experts[e].begin(), parts.experts[e].end(),
                                    [&](int32_t i) { return statistics.marked[static_cast<size_t>(i)] == 0; });
    if (never == parts.experts[e].end()) continue;
    EXPECT_EQ(parts.representatives[e], *never);
    ++found;
  }
  EXPECT_GT(found, 0);
}

// Two groups of neurons, each active on its own half of the tokens: both ways of clustering must find them.
TEST(Partition, FindsGroupsThatAreThere) {
  SmallLayer small;
  const int64_t half = small.tokens() / 2;
  LayerActivations activations{.input = small.input,
                               .h = Tensor::zeros(DType::f32, {small.tokens(), small.f}),
                               .k_act = small.f / 2,
                               .chunks = TokenChunks::of_sequences(small.sequences, small.sequences, small.length)};
  const auto alone = test_world().split(test_world().rank());
  for (int64_t t = 0; t < small.tokens(); ++t) {
    for (int64_t i = 0; i < small.f; ++i) {
      if ((i % 2 == 0) != (t < half)) continue;
      // neuron 0 stands out in its group, neuron 1 in the other: they become the seeds
      activations.h.row<float>(t)[i] = i < 2 ? 2.0f : 1.0f + 0.001f * static_cast<float>(i);
      activations.markers.push_back(static_cast<int32_t>(i));
    }
  }
  NeuronStatistics statistics = neuron_statistics(activations.h, activations.chunks, *alone);
  statistics.marked = count_markers(activations.markers, small.f, *alone);
  std::fill_n(small.dense.down.data<float>(), small.dense.down.size(), 1.0f);
  // Marked once more, so that the second seed comes from the second group.
  statistics.marked[0] += 2;
  statistics.marked[1] += 1;
  for (Partition partition : {Partition::cosine, Partition::markers_l1, Partition::markers_l2, Partition::markers_squared_l2}) {
    const Partitioned parts = partition_neurons(*small.backend, {.partition = partition}, remaining_neurons(small.f, {}), 2,
                                                small.dense, activations, statistics, 0, 0, *alone);
    for (const auto& expert : parts.experts) {
      std::set<int32_t> parity;
      for (int32_t i : expert) parity.insert(i % 2);
      EXPECT_EQ(parity.size(), 1u) << name_of(partition);
    }
  }
}

}  // namespace
}  // namespace cmoe

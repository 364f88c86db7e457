#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <numeric>
#include <random>
#include <set>
#include <sstream>

#include "base/error.h"
#include "base/parallel.h"
#include "carve/balanced_assignment.h"
#include "carve/clustering.h"
#include "support/world.h"

namespace cmoe {
namespace {

using testing::HasSubstr;

// Only a^T b, as its contract says: f32, over the tokens in order.
class PlainBackend : public Backend {
 public:
  std::string description() const override { return "plain a^T b"; }
  void multiply_transposed(const Tensor& a, const Tensor& b, Tensor& c, bool accumulate) const override {
    const int64_t n = a.dim(1), m = b.dim(1);
    if (!accumulate) std::fill_n(c.data<float>(), n * m, 0.0f);
    for (int64_t t = 0; t < a.dim(0); ++t) {
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < m; ++j) c.row<float>(i)[j] += a.row<float>(t)[i] * b.row<float>(t)[j];
      }
    }
  }

  Weight prepare(const Tensor&, DType) const override { fail_internal("PlainBackend: a^T b alone"); }
  void linear(const Tensor&, const Weight&, Tensor&, bool) const override { fail_internal("PlainBackend: a^T b alone"); }
  void embed(std::span<const int32_t>, const Tensor&, Tensor&) const override { fail_internal("PlainBackend: a^T b alone"); }
  void rms_norm(const Tensor&, const Tensor&, float, Tensor&) const override { fail_internal("PlainBackend: a^T b alone"); }
  void rope(Tensor&, int64_t, std::span<const int32_t>, const Tensor&, const Tensor&) const override {
    fail_internal("PlainBackend: a^T b alone");
  }
  void attention(const Tensor&, const Tensor&, const Tensor&, std::span<const AttentionSpan>, int64_t, DType, Tensor&,
                 Tensor*) const override {
    fail_internal("PlainBackend: a^T b alone");
  }
  void swiglu(const Tensor&, const Tensor&, Tensor&) const override { fail_internal("PlainBackend: a^T b alone"); }
  void add(const Tensor&, Tensor&) const override { fail_internal("PlainBackend: a^T b alone"); }
  void add_bias(const Tensor&, Tensor&) const override { fail_internal("PlainBackend: a^T b alone"); }
  void gather_rows(const Tensor&, std::span<const int32_t>, Tensor&) const override {
    fail_internal("PlainBackend: a^T b alone");
  }
  void cross_entropy(const Tensor&, const Weight&, std::span<const int32_t>, std::span<double>) const override {
    fail_internal("PlainBackend: a^T b alone");
  }
};

using Dense = std::vector<std::vector<int>>;  // [tokens][n] bits

SparseBits sparse(const Dense& bits, int64_t begin, int64_t end, int64_t n) {
  SparseBits result{end - begin, n, {0}, {}};
  for (int64_t t = begin; t < end; ++t) {
    for (int64_t i = 0; i < n; ++i) {
      if (bits[t][i]) result.column.push_back(static_cast<int32_t>(i));
    }
    result.row_begin.push_back(static_cast<int64_t>(result.column.size()));
  }
  return result;
}

// Contiguous and uneven; with several ranks the first has no token.
std::pair<int64_t, int64_t> share_of(int64_t tokens, const Communicator& comm) {
  const int64_t size = comm.size(), rank = comm.rank();
  if (size == 1) return {0, tokens};
  return {rank == 0 ? 0 : tokens * (rank - 1) / (size - 1), tokens * rank / (size - 1)};
}

Dense random_bits(int64_t tokens, int64_t n, double rate, uint64_t seed) {
  std::mt19937_64 random(seed);
  Dense bits(tokens, std::vector<int>(n));
  for (auto& row : bits) {
    for (int& bit : row) bit = std::bernoulli_distribution(rate)(random);
  }
  return bits;
}

// The oracle: the definition of the distance, bit by bit, to centroids counts[j][t] / members, in the units of the header.
std::vector<int64_t> dense_distances(const Dense& bits, const std::vector<std::vector<int64_t>>& counts, int64_t members,
                                     int64_t m, MarkerDistance distance) {
  const auto n = static_cast<int64_t>(bits[0].size());
  std::vector<int64_t> result;
  for (int64_t i = 0; i < n; ++i) {
    for (const auto& count : counts) {
      int64_t l1 = 0, squared = 0;
      for (size_t t = 0; t < bits.size(); ++t) {
        const int64_t difference = m * bits[t][i] - m / members * count[t];
        l1 += std::abs(difference);
        squared += difference * difference;
      }
      if (distance == MarkerDistance::l1) result.push_back(l1);
      if (distance == MarkerDistance::squared_l2) result.push_back(squared);
      if (distance == MarkerDistance::l2) result.push_back(std::llround(std::sqrt(static_cast<double>(squared)) * 16384.0));
    }
  }
  return result;
}

std::vector<std::vector<int64_t>> member_counts(const Dense& bits, const std::vector<int32_t>& label, int64_t clusters) {
  std::vector<std::vector<int64_t>> counts(clusters, std::vector<int64_t>(bits.size(), 0));
  for (size_t t = 0; t < bits.size(); ++t) {
    for (size_t i = 0; i < label.size(); ++i) {
      if (label[i] >= 0) counts[label[i]][t] += bits[t][i];
    }
  }
  return counts;
}

TEST(ClusterMarkers, FollowsTheDenseDefinitionOnAnyNumberOfRanks) {
  Communicator& world = test_world();
  const int64_t clusters = 4, m = 6, n = clusters * m, tokens = 14;
  const std::vector<int32_t> seeds{5, 0, 23, 11}, seed_label = [&] {
    std::vector<int32_t> label(n, -1);
    for (int32_t j = 0; j < clusters; ++j) label[seeds[j]] = j;
    return label;
  }();
  for (MarkerDistance distance : {MarkerDistance::l1, MarkerDistance::squared_l2, MarkerDistance::l2}) {
    for (int64_t rounds = 1; rounds <= 5; ++rounds) {
      const Dense bits = random_bits(tokens, n, 0.4, static_cast<uint64_t>(rounds));
      const auto [begin, end] = share_of(tokens, world);
      const Clusters found = cluster_markers(sparse(bits, begin, end, n), seeds, distance, rounds, world);

      std::vector<int64_t> cost = dense_distances(bits, member_counts(bits, seed_label, clusters), 1, m, distance);
      std::vector<int32_t> label;
      std::vector<int64_t> objective;
      for (int64_t round = 0; round < rounds; ++round) {
        const BalancedAssignment assignment = assign_balanced(cost, n, clusters, std::vector<int64_t>(clusters, m));
        objective.push_back(assignment.total_cost);
        cost = dense_distances(bits, member_counts(bits, assignment.label, clusters), m, m, distance);
        if (assignment.label == label) break;
        label = assignment.label;
      }
      EXPECT_EQ(found.label, label) << "rounds " << rounds;
      EXPECT_EQ(found.objective, objective) << "rounds " << rounds;
      for (int64_t i = 0; i < n; ++i) EXPECT_EQ(found.distance[i], cost[i * clusters + label[i]]);
      for (int64_t j = 0; j < clusters; ++j) EXPECT_EQ(std::count(label.begin(), label.end(), j), m);
    }
  }
}

TEST(ClusterMarkers, L1AndSquaredL2GiveTheSameClustersAndRepresentatives) {
  Communicator& world = test_world();
  const int64_t n = 30, tokens = 90;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const Dense bits = random_bits(tokens, n, 0.1 + 0.02 * static_cast<double>(seed), seed);
    const auto [begin, end] = share_of(tokens, world);
    const SparseBits mine = sparse(bits, begin, end, n);
    const Clusters l1 = cluster_markers(mine, std::vector<int32_t>{1, 2, 3}, MarkerDistance::l1, 6, world);
    const Clusters l2 = cluster_markers(mine, std::vector<int32_t>{1, 2, 3}, MarkerDistance::squared_l2, 6, world);
    EXPECT_EQ(l1.label, l2.label);
    EXPECT_EQ(nearest_items(l1), nearest_items(l2));
  }
}

TEST(ClusterMarkers, LaterRoundsNeverRaiseTheSquaredDistance) {
  Communicator& world = test_world();
  size_t most_rounds = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const Dense bits = random_bits(12, 40, 0.3, seed);
    const auto [begin, end] = share_of(12, world);
    const Clusters found =
        cluster_markers(sparse(bits, begin, end, 40), std::vector<int32_t>{0, 1, 2, 3}, MarkerDistance::squared_l2, 50, world);
    EXPECT_TRUE(found.converged);
    for (size_t r = 1; r < found.objective.size(); ++r) EXPECT_LE(found.objective[r], found.objective[r - 1]);
    most_rounds = std::max(most_rounds, found.objective.size());
  }
  EXPECT_GE(most_rounds, 3u);  // or the comparison above says little
}

// METHOD of the authors: the sparse mean is nearest to a neuron that is never marked, whatever the others do.
TEST(ClusterMarkers, ANeverMarkedNeuronRepresentsItsCluster) {
  Communicator& world = test_world();
  const int64_t n = 40, tokens = 60;
  Dense bits = random_bits(tokens, n, 0.2, 3);
  for (auto& row : bits) row[17] = row[29] = 0;
  const auto [begin, end] = share_of(tokens, world);
  const SparseBits mine = sparse(bits, begin, end, n);
  const Clusters found = cluster_markers(mine, std::vector<int32_t>{0, 1}, MarkerDistance::l1, 1, world);
  const std::vector<int32_t> nearest = nearest_items(found);
  EXPECT_EQ(nearest[found.label[17]], 17);
  EXPECT_EQ(nearest[found.label[29]], found.label[29] == found.label[17] ? 17 : 29);

  std::vector<int64_t> rate(n, 0);
  for (const auto& row : bits) {
    for (int64_t i = 0; i < n; ++i) rate[i] += row[i];
  }
  const std::vector<int32_t> busiest = highest_rate_items(found, rate);
  for (int64_t i = 0; i < n; ++i) {
    const int32_t best = busiest[found.label[i]];
    EXPECT_TRUE(rate[best] > rate[i] || (rate[best] == rate[i] && best <= i));
  }
}

// tests/carve/make_clustering_golden.py: the authors' steps with a dense solver, where the optimum is unique.
TEST(ClusterMarkers, AgreesWithTheAuthorsSteps) {
  Communicator& world = test_world();
  std::ifstream file(CMOE_SOURCE_DIR "/tests/carve/clustering_golden.txt");
  ASSERT_TRUE(file.is_open());
  const auto read_line = [&](std::vector<int32_t>& values) {
    std::string line;
    if (!std::getline(file, line)) return false;
    std::istringstream words(line);
    values.assign(std::istream_iterator<int32_t>(words), {});
    return true;
  };
  std::vector<int32_t> sizes, marks, candidates, label, representatives;
  int cases = 0;
  while (read_line(sizes)) {
    ASSERT_TRUE(read_line(marks) && read_line(candidates) && read_line(label) && read_line(representatives));
    const int64_t tokens = sizes[0], k_act = sizes[1], neurons = sizes[2], shared = sizes[3], clusters = sizes[4],
                  objective = sizes[5];
    const std::vector<int64_t> rate = count_marks(marks, neurons);

    std::vector<int32_t> kept = highest_rate_seeds(rate, shared);
    std::vector<int32_t> others;
    for (int32_t i = 0; i < neurons; ++i) {
      if (std::find(kept.begin(), kept.end(), i) == kept.end()) others.push_back(i);
    }
    EXPECT_EQ(others, candidates);
    std::vector<int64_t> other_rate;
    for (int32_t i : others) other_rate.push_back(rate[i]);

    const auto [begin, end] = share_of(tokens, world);
    const auto mine = std::span<const int32_t>(marks).subspan(begin * k_act, (end - begin) * k_act);
    const Clusters found = cluster_markers(select_marks(mine, k_act, neurons, others), highest_rate_seeds(other_rate, clusters),
                                           MarkerDistance::l1, 1, world);
    EXPECT_EQ(found.label, label) << "case " << cases;
    EXPECT_EQ(found.objective[0], objective * (static_cast<int64_t>(others.size()) / clusters)) << "case " << cases;
    EXPECT_EQ(nearest_items(found), representatives) << "case " << cases;
    ++cases;
  }
  EXPECT_GE(cases, 6);
}

// Groups of neurons that rise together over tokens, sizes (lengths of columns) from 1e-3 to 1e3.
Tensor grouped_columns(int64_t tokens, int64_t n, int64_t groups, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  Tensor columns(DType::f32, {tokens, n});
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<float> level(groups);
    for (float& value : level) value = std::abs(normal(random));
    for (int64_t i = 0; i < n; ++i) {
      const float size = std::pow(10.0f, static_cast<float>(i % 7 - 3));
      columns.row<float>(t)[i] = size * (level[i % groups] + 0.3f * std::abs(normal(random)));
    }
  }
  return columns;
}

// Sequences of 24 tokens in pieces of 8; rank r has sequences [r * S / P, (r + 1) * S / P).
Clusters cluster_sequences(const Tensor& columns, int64_t sequences, std::span<const int32_t> seeds, int64_t rounds,
                           Communicator& comm) {
  const int64_t length = 24, begin = sequences * comm.rank() / comm.size(), end = sequences * (comm.rank() + 1) / comm.size();
  TokenChunks chunks;
  for (int64_t at = 8; at <= (end - begin) * length; at += 8) chunks.begin.push_back(at);
  chunks.total_chunks = sequences * 3;
  chunks.total_tokens = sequences * length;
  return cluster_cosine(PlainBackend(), columns.rows(begin * length, end * length), chunks, seeds, rounds, comm);
}

TEST(ClusterCosine, IsTheSameOnAnyNumberOfRanksAndFindsTheGroups) {
  Communicator& world = test_world();
  const auto alone = world.split(world.rank());
  const int64_t groups = 5, n = 40, sequences = 7;
  const Tensor columns = grouped_columns(sequences * 24, n, groups, 1);
  const std::vector<int32_t> seeds{0, 1, 2, 3, 4};
  const Clusters together = cluster_sequences(columns, sequences, seeds, 6, world);
  const Clusters one_rank = cluster_sequences(columns, sequences, seeds, 6, *alone);
  EXPECT_EQ(together.label, one_rank.label);
  EXPECT_EQ(together.objective, one_rank.objective);
  EXPECT_EQ(together.distance, one_rank.distance);
  for (int64_t i = 0; i < n; ++i) EXPECT_EQ(one_rank.label[i], i % groups);
  EXPECT_TRUE(one_rank.converged);
  set_num_threads(2);
  EXPECT_EQ(cluster_sequences(columns, sequences, seeds, 6, *alone).distance, one_rank.distance);
  set_num_threads(1);
  // One sequence on several ranks: the others have none.
  EXPECT_EQ(cluster_sequences(columns, 1, seeds, 3, world).distance, cluster_sequences(columns, 1, seeds, 3, *alone).distance);
}

TEST(ClusterCosine, FollowsTheDefinitionInDoublePrecision) {
  Communicator& world = test_world();
  const auto alone = world.split(world.rank());
  const int64_t clusters = 3, m = 5, n = clusters * m, tokens = 96;
  const Tensor columns = grouped_columns(tokens, n, 4, 2);            // groups and clusters do not match
  for (int64_t t = 0; t < tokens; ++t) columns.row<float>(t)[7] = 0;  // a neuron that never fires
  const Clusters found = cluster_sequences(columns, 4, std::vector<int32_t>{2, 9, 4}, 2, *alone);
  std::vector<std::vector<double>> unit(n, std::vector<double>(tokens, 0)), mean(clusters, std::vector<double>(tokens, 0));
  for (int64_t i = 0; i < n; ++i) {
    double norm = 0;
    for (int64_t t = 0; t < tokens; ++t) norm += std::pow(columns.row<float>(t)[i], 2);
    for (int64_t t = 0; t < tokens && norm > 0; ++t) unit[i][t] = columns.row<float>(t)[i] / std::sqrt(norm);
    for (int64_t t = 0; t < tokens; ++t) mean[found.label[i]][t] += unit[i][t];
  }
  for (int64_t i = 0; i < n; ++i) {
    const std::vector<double>& centroid = mean[found.label[i]];
    const double length = std::sqrt(std::inner_product(centroid.begin(), centroid.end(), centroid.begin(), 0.0));
    const double cosine = std::inner_product(centroid.begin(), centroid.end(), unit[i].begin(), 0.0) / length;
    EXPECT_NEAR(std::ldexp(static_cast<double>(found.distance[i]), -30), -cosine, 1e-5) << "item " << i;  // f32 products
  }
  EXPECT_EQ(found.distance[7], 0);
  for (int64_t j = 0; j < clusters; ++j) EXPECT_EQ(std::count(found.label.begin(), found.label.end(), j), m);
}

TEST(Seeds, AreTheHighestRatesTiesToTheSmallerIndex) {
  EXPECT_THAT(highest_rate_seeds(std::vector<int64_t>{3, 9, 3, 9, 1}, 3), testing::ElementsAre(1, 3, 0));
  EXPECT_THAT(highest_rate_seeds(std::vector<double>{0.5, 0.5}, 1), testing::ElementsAre(0));
}

template <class Function>
std::string message_of(Function function) {
  try {
    function();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Clustering, RefusesWithNumbers) {
  Communicator& world = test_world();
  const auto alone = world.split(world.rank());
  const Dense bits = random_bits(5, 10, 0.5, 1);
  const SparseBits mine = sparse(bits, 0, 5, 10);
  const auto markers = [&](std::vector<int32_t> seeds, int64_t rounds) {
    return message_of([&] { cluster_markers(mine, seeds, MarkerDistance::l1, rounds, *alone); });
  };
  EXPECT_THAT(markers({0, 1, 2}, 1), HasSubstr("10 neurons do not divide into 3 clusters"));
  EXPECT_THAT(markers({}, 1), HasSubstr("10 neurons do not divide into 0 clusters"));
  EXPECT_THAT(markers({0, 10}, 1), HasSubstr("seed 1 is item 10, expected 0 to 9"));
  EXPECT_THAT(markers({4, 4}, 1), HasSubstr("item 4 is the seed of clusters 0 and 1"));
  EXPECT_THAT(markers({0, 1}, 0), HasSubstr("0 rounds, expected at least 1"));
  EXPECT_THAT(message_of([&] { cluster_balanced({}, 7, 2, 1, nullptr); }), HasSubstr("7 items do not divide into 2 clusters"));
  EXPECT_THAT(message_of([&] { highest_rate_seeds(std::vector<int64_t>{1}, 2); }), HasSubstr("2 seeds of 1 items"));
  EXPECT_THAT(message_of([&] {
                highest_rate_items(Clusters{1, {0, 0}, {}, {}, false}, std::vector<int64_t>{1});
              }),
              HasSubstr("1 rates, expected one for each of 2 items"));

  const Tensor columns = grouped_columns(24, 6, 2, 1);
  EXPECT_THAT(message_of([&] {
                cluster_sequences(columns, 1, std::vector<int32_t>{0, 1, 2, 3}, 1, *alone);
              }),
              HasSubstr("6 neurons do not divide into 4 clusters"));
  columns.row<float>(3)[2] = std::nanf("");
  EXPECT_THAT(message_of([&] {
                cluster_sequences(columns, 1, std::vector<int32_t>{0, 1}, 1, *alone);
              }),
              HasSubstr("squared column lengths: element 2 of a chunk is nan"));
  EXPECT_THAT(message_of([&] {
                cluster_cosine(PlainBackend(), columns, TokenChunks{}, std::vector<int32_t>{0, 1}, 1, *alone);
              }),
              HasSubstr("columns of shape [24, 6], expected f32 [0, n]"));
}

}  // namespace
}  // namespace cmoe

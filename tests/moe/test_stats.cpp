#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "moe/stats.h"
#include "support/world.h"

namespace cmoe {
namespace {

// Two layers as rank `rank` sees them: token t of three takes expert t in layer 0, and expert 1 alone in layer 1.
MoeStats stats_of(int rank, int ranks) {
  const auto placement = ExpertPlacement::contiguous(4, ranks);
  MoeStats stats;
  stats.layers.resize(2);
  stats.layers[0].add({{0, 1, 2, 3}, {0, 1, 2}, {1, 1, 1}}, placement, rank);
  stats.layers[1].add({{0, 1, 2, 3}, {1, 1, 1}, {1, 1, 1}}, placement, rank);
  ExchangeReport report;
  report.transport = Transport::all_gather;
  report.sent = {1, 10, 100, 1000};
  report.wait_seconds = rank;
  stats.layers[0].add(report);
  stats.layers[0].experts_seconds = 2;
  return stats;
}

TEST(MoeStats, CountsAndMergesExactly) {
  Communicator& comm = test_world();
  const int64_t n = comm.size();
  const MoeStats merged = stats_of(comm.rank(), comm.size()).merged(comm);
  const LayerStats& first = merged.layers[0];
  EXPECT_EQ(first.tokens, 3 * n);
  EXPECT_EQ(first.tokens_per_expert, (std::vector<int64_t>{n, n, n, 0}));
  EXPECT_EQ(first.calls, 1);
  EXPECT_EQ(first.all_gather_calls, 1);
  EXPECT_EQ(first.sent, (WireBytes{n, 10 * n, 100 * n, 1000 * n}));
  EXPECT_DOUBLE_EQ(first.expert_max_over_mean(), 4.0 / 3);
  EXPECT_DOUBLE_EQ(first.wait_seconds, static_cast<double>(n - 1) / 2);
  EXPECT_DOUBLE_EQ(first.slowest_rank_seconds, static_cast<double>(n - 1) + 2);
  // All of layer 1 goes to the rank of expert 1.
  EXPECT_DOUBLE_EQ(merged.layers[1].rank_max_over_mean(), static_cast<double>(n));
  EXPECT_DOUBLE_EQ(LayerStats{}.rank_max_over_mean(), 1.0);
}

TEST(MoeStats, SpeaksJsonAndTable) {
  Communicator& comm = test_world();
  const MoeStats merged = stats_of(comm.rank(), comm.size()).merged(comm);
  const nlohmann::json json = merged.to_json();
  EXPECT_EQ(json["layers"].size(), 2u);
  EXPECT_EQ(json["layers"][1]["layer"], 1);
  EXPECT_EQ(json["layers"][0]["tokens_per_expert"][3], 0);
  EXPECT_EQ(json["layers"][0]["bytes"]["total"], 1111 * comm.size());
  EXPECT_EQ(json["total"]["tokens"], 6 * comm.size());
  EXPECT_EQ(json["total"]["seconds"]["experts"], 2.0);
  const std::string table = merged.table();
  EXPECT_THAT(table, ::testing::HasSubstr("max/mean"));
  EXPECT_EQ(std::count(table.begin(), table.end(), '\n'), 5);
}

TEST(MoeStats, RefusesRanksWithDifferentLayers) {
  Communicator& comm = test_world();
  if (comm.size() < 2) GTEST_SKIP() << "needs two ranks";
  MoeStats stats = stats_of(comm.rank(), comm.size());
  if (comm.rank() == 0) stats.layers.pop_back();
  try {
    stats.merged(comm);
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("counted different layers or experts"));
  }
  comm.barrier();
}

}  // namespace
}  // namespace cmoe

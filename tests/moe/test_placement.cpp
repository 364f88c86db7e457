#include <gmock/gmock.h>

#include <cmath>
#include <numeric>
#include <random>

#include "base/error.h"
#include "moe/placement.h"
#include "moe/random_routing.h"

namespace cmoe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

template <class Call>
std::string message(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

std::vector<size_t> counts(const ExpertPlacement& placement) {
  std::vector<size_t> result;
  for (int r = 0; r < placement.ranks(); ++r) result.push_back(placement.local_experts(r).size());
  return result;
}

std::vector<double> zipf(size_t n, double exponent) {
  std::vector<double> load;
  for (size_t i = 0; i < n; ++i) load.push_back(std::pow(static_cast<double>(i + 1), -exponent));
  return load;
}

TEST(ExpertPlacement, ContiguousNeedNotDivide) {
  EXPECT_THAT(counts(ExpertPlacement::contiguous(14, 4)), ElementsAre(4, 4, 3, 3));
  EXPECT_THAT(counts(ExpertPlacement::contiguous(2, 5)), ElementsAre(1, 1, 0, 0, 0));
  EXPECT_THAT(counts(ExpertPlacement::contiguous(0, 2)), ElementsAre(0, 0));
  const auto placement = ExpertPlacement::contiguous(14, 4);
  EXPECT_THAT(placement.local_experts(1), ElementsAre(GlobalExpert{4}, GlobalExpert{5}, GlobalExpert{6}, GlobalExpert{7}));
  EXPECT_EQ(placement.find_local(GlobalExpert{6}, 1), LocalExpert{2});
  EXPECT_EQ(placement.find_local(GlobalExpert{6}, 0), std::nullopt);
}

TEST(ExpertPlacement, HomeServesItsOwnCopyAndOthersShareTheRest) {
  const auto placement = ExpertPlacement::of({{2, 0}, {1}}, 4);
  EXPECT_THAT(placement.copies(GlobalExpert{0}), ElementsAre(0, 2));
  EXPECT_EQ(placement.rank_for(GlobalExpert{0}, 0), 0);
  EXPECT_EQ(placement.rank_for(GlobalExpert{0}, 2), 2);
  EXPECT_EQ(placement.rank_for(GlobalExpert{0}, 1), 0);
  EXPECT_EQ(placement.rank_for(GlobalExpert{0}, 3), 2);
  EXPECT_EQ(placement.rank_for(GlobalExpert{1}, 3), 1);
  const std::vector<double> load{8, 4};
  EXPECT_THAT(placement.rank_load(load), ElementsAre(4, 4, 4, 0));
  EXPECT_NEAR(placement.max_over_mean(load), 4.0 / 3, 1e-12);
}

TEST(ExpertPlacement, ServingRankAlwaysHoldsTheExpert) {
  std::mt19937_64 random(7);
  for (int i = 0; i < 50; ++i) {
    const int ranks = 1 + static_cast<int>(random() % 9);
    const auto placement = random_placement(static_cast<int32_t>(random() % 20), ranks, 3, random);
    for (int32_t e = 0; e < placement.num_experts(); ++e) {
      for (int home = 0; home < ranks; ++home) {
        const int rank = placement.rank_for(GlobalExpert{e}, home);
        const auto local = placement.find_local(GlobalExpert{e}, rank);
        ASSERT_TRUE(local.has_value());
        EXPECT_EQ(placement.local_experts(rank)[static_cast<size_t>(index_of(*local))], GlobalExpert{e});
        if (placement.find_local(GlobalExpert{e}, home)) {
          EXPECT_EQ(rank, home);
        }
      }
    }
  }
}

// The best possible largest load, by trying every placement without copies.
double optimal_max(const std::vector<double>& load, size_t next, std::vector<double>& total) {
  if (next == load.size()) return *std::max_element(total.begin(), total.end());
  double best = 1e300;
  for (auto& t : total) {
    t += load[next];
    best = std::min(best, optimal_max(load, next + 1, total));
    t -= load[next];
  }
  return best;
}

TEST(ExpertPlacement, BalancedComesCloseToTheOptimum) {
  std::mt19937_64 random(3);
  for (int i = 0; i < 20; ++i) {
    std::vector<double> load(8);
    for (double& l : load) l = std::uniform_real_distribution<double>(0, 1)(random);
    std::vector<double> total(3, 0.0);
    const double best = optimal_max(load, 0, total);
    const auto rank_load = ExpertPlacement::balanced(load, 3).rank_load(load);
    EXPECT_LE(*std::max_element(rank_load.begin(), rank_load.end()), 1.05 * best);
    EXPECT_NEAR(std::accumulate(rank_load.begin(), rank_load.end(), 0.0), std::accumulate(load.begin(), load.end(), 0.0), 1e-9);
  }
}

TEST(ExpertPlacement, BalancedBeatsContiguous) {
  // Skewed loads, hot experts side by side.
  const auto load = zipf(14, 0.7);
  EXPECT_GT(ExpertPlacement::contiguous(14, 4).max_over_mean(load), 1.5);
  EXPECT_LE(ExpertPlacement::balanced(load, 4).max_over_mean(load), 1.15);
}

TEST(ExpertPlacement, RedundantCopiesTakeTheHeatOfZipfLoads) {
  for (int ranks : {4, 8, 16}) {
    const auto load = zipf(64, 1.2);
    const double alone = ExpertPlacement::balanced(load, ranks).max_over_mean(load);
    const auto copied = ExpertPlacement::balanced(load, ranks, 2 * ranks);
    EXPECT_LE(copied.max_over_mean(load), 1.10) << ranks << " ranks, without copies " << alone;
    size_t copies = 0;
    for (int32_t e = 0; e < 64; ++e) copies += copied.copies(GlobalExpert{e}).size();
    EXPECT_LE(copies, 64u + 2 * static_cast<size_t>(ranks));
  }
}

TEST(ExpertPlacement, BalancedTakesOddSizes) {
  EXPECT_EQ(ExpertPlacement::balanced({}, 3, 2).num_experts(), 0);
  EXPECT_DOUBLE_EQ(ExpertPlacement::balanced({}, 3).max_over_mean({}), 1.0);
  const std::vector<double> none(5, 0.0), one{3.0};
  EXPECT_THAT(counts(ExpertPlacement::balanced(none, 4)), ElementsAre(2, 1, 1, 1));
  // One expert on three ranks: two more copies make it even, a third has no place.
  EXPECT_DOUBLE_EQ(ExpertPlacement::balanced(one, 3).max_over_mean(one), 3.0);
  EXPECT_DOUBLE_EQ(ExpertPlacement::balanced(one, 3, 7).max_over_mean(one), 1.0);
}

TEST(ExpertPlacement, FingerprintTellsPlacementsApart) {
  const auto load = zipf(14, 1.0);
  EXPECT_EQ(ExpertPlacement::balanced(load, 4, 3).fingerprint(), ExpertPlacement::balanced(load, 4, 3).fingerprint());
  EXPECT_NE(ExpertPlacement::of({{0}, {1}}, 2).fingerprint(), ExpertPlacement::of({{1}, {0}}, 2).fingerprint());
  EXPECT_NE(ExpertPlacement::of({{0}, {0, 1}}, 2).fingerprint(), ExpertPlacement::of({{0, 1}, {0}}, 2).fingerprint());
  EXPECT_NE(ExpertPlacement::contiguous(2, 2).fingerprint(), ExpertPlacement::contiguous(2, 3).fingerprint());
}

TEST(ExpertPlacement, RefusesWhatCannotBe) {
  EXPECT_THAT(message([] { ExpertPlacement::of({{0}, {}}, 2); }), HasSubstr("expert 1 has no copy"));
  EXPECT_THAT(message([] { ExpertPlacement::of({{2}}, 2); }), HasSubstr("expert 0 is placed on rank 2; expected 0 to 1"));
  EXPECT_THAT(message([] { ExpertPlacement::of({{1, 1}}, 2); }), HasSubstr("expert 0 is placed twice on rank 1"));
  EXPECT_THAT(message([] { ExpertPlacement::contiguous(4, 0); }), HasSubstr("0 ranks; expected at least 1"));
  EXPECT_THAT(message([] { ExpertPlacement::contiguous(-1, 2); }), HasSubstr("-1 experts"));
  const std::vector<double> bad{1.0, std::nan("")};
  EXPECT_THAT(message([&] { ExpertPlacement::balanced(bad, 2); }), HasSubstr("the load of expert 1 is nan"));
  EXPECT_THAT(message([] { ExpertPlacement::balanced({}, 2, -1); }), HasSubstr("-1 redundant experts"));
  EXPECT_THAT(message([&] { ExpertPlacement::contiguous(3, 2).rank_load(bad); }), HasSubstr("2 loads for 3 experts"));
}

}  // namespace
}  // namespace cmoe

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "comm/rank_watch.h"

namespace cmoe {
namespace {

using Kind = RankWatch::Kind;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using ::testing::StartsWith;

RankWatch::Report error_of(int rank, const std::string& text, int exit_code = 1) {
  RankWatch::Report report;
  report.about = rank;
  report.exit_code = exit_code;
  report.stage = {.name = "carve", .layer = 17};
  report.text = text;
  return report;
}

RankWatch watch_of(int rank, int ranks = 4) {
  std::vector<std::string> hosts;
  for (int r = 0; r < ranks; ++r) hosts.push_back("n" + std::to_string(r / 2));
  return {rank, hosts, 100};
}

// Beats of all but `except` at this time.
void beat(RankWatch& watch, double now, int rank, int except, int ranks = 4) {
  for (int r = 0; r < ranks; ++r) {
    if (r != rank && r != except) watch.heard(r, now, {.name = "carve", .layer = 17}, 1);
  }
}

TEST(RankWatch, NothingIsWrongWhileAllBeat) {
  RankWatch watch = watch_of(0);
  for (double now = 100; now < 200; now += 1) {
    beat(watch, now, 0, -1);
    EXPECT_THAT(watch.find_lost(now + 0.5), SizeIs(0));
    EXPECT_FALSE(watch.decide(now + 0.5));
  }
}

TEST(RankWatch, SilenceEndsTheJobBeforeTheTimeout) {
  RankWatch watch = watch_of(0);
  watch.heard(2, 100, {.name = "profile", .layer = 3}, 1);
  double now = 100;
  while (watch.find_lost(now).empty()) {
    ASSERT_LT(now, 110);
    beat(watch, now, 0, 2);
    now += 0.25;
  }
  EXPECT_GT(now, 108);
  const auto verdict = watch.decide(now);
  ASSERT_TRUE(verdict);
  EXPECT_THAT(verdict->line, StartsWith("rank 2 on host n1 sent no heartbeat for 8 s; last seen in profile, layer 3;"));
  EXPECT_EQ(verdict->exit_code, 1);
  EXPECT_FALSE(verdict->orderly);
}

TEST(RankWatch, ZeroWaitsForEver) {
  RankWatch watch = watch_of(0);
  watch.set_timeout(0, 100);
  EXPECT_THAT(watch.find_lost(1e9), SizeIs(0));
}

TEST(RankWatch, ARankThatStillBeatsSlowlyIsNotLate) {
  RankWatch watch = watch_of(0, 2);
  watch.heard(1, 100, {}, 1.0);
  watch.set_timeout(1, 100);
  EXPECT_THAT(watch.find_lost(102.4), SizeIs(0));
  watch.heard(1, 102.4, {}, 0.1);
  EXPECT_THAT(watch.find_lost(103.3), SizeIs(1));
}

TEST(RankWatch, OwnStandstillIsHeldAgainstNobody) {
  RankWatch watch = watch_of(0);
  watch.forgive(1000);
  EXPECT_THAT(watch.find_lost(1007), SizeIs(0));
}

TEST(RankWatch, GoodbyeIsNoFault) {
  RankWatch watch = watch_of(0);
  for (int r = 1; r < 4; ++r) {
    watch.left(r);
    watch.closed(r, 101);
  }
  EXPECT_THAT(watch.find_lost(1000), SizeIs(0));
  EXPECT_FALSE(watch.decide(1000));
}

TEST(RankWatch, TheLowestRankAliveTellsOfAClosedConnection) {
  for (const int dead : {0, 2}) {
    const int speaker = dead == 0 ? 1 : 0;
    for (int rank = 0; rank < 4; ++rank) {
      if (rank == dead) continue;
      RankWatch watch = watch_of(rank);
      watch.heard(dead, 100, {.name = "evaluate"}, 1);
      watch.closed(dead, 101);
      const auto told = watch.find_lost(101);
      ASSERT_THAT(told, SizeIs(1));
      EXPECT_EQ(told[0].about, dead);
      EXPECT_THAT(watch.find_lost(101), SizeIs(0)) << "told once";
      EXPECT_FALSE(watch.decide(101)) << "an error may still arrive";
      const auto verdict = watch.decide(101.2);
      ASSERT_EQ(verdict.has_value(), rank == speaker) << "rank " << rank;
      if (verdict) {
        EXPECT_THAT(verdict->line, HasSubstr("ended without a word; last seen in evaluate;"));
      }
      // A speaker that never speaks is replaced.
      EXPECT_TRUE(watch.decide(103.5)) << "rank " << rank;
    }
  }
}

TEST(RankWatch, AnErrorExplainsMoreThanAClosedConnection) {
  RankWatch watch = watch_of(0);
  watch.closed(3, 101);
  watch.add(error_of(2, "disk full"), 101.05);
  watch.closed(2, 101.06);
  const auto verdict = watch.decide(102);
  ASSERT_TRUE(verdict);
  EXPECT_EQ(verdict->line, "rank 2 on host n1, in carve, layer 17: disk full");
}

TEST(RankWatch, AnErrorOfAllRanksIsToldOnceWithoutARankAndAtOnce) {
  RankWatch watch = watch_of(0);
  for (int r = 0; r < 4; ++r) {
    EXPECT_FALSE(watch.decide(101));
    watch.add(error_of(r, "no such file", 2), 101);
  }
  const auto verdict = watch.decide(101);
  ASSERT_TRUE(verdict);
  EXPECT_EQ(verdict->line, "no such file");
  EXPECT_EQ(verdict->exit_code, 2);
  EXPECT_TRUE(verdict->orderly);
}

TEST(RankWatch, AllRanksWithErrorsOfTheirOwnLeaveInOrderUnderTheFirstName) {
  RankWatch watch = watch_of(0, 2);
  watch.add(error_of(1, "disk b full"), 101);
  watch.add(error_of(0, "disk a full"), 101);
  const auto verdict = watch.decide(101);
  ASSERT_TRUE(verdict);
  EXPECT_EQ(verdict->line, "rank 1 on host n0, in carve, layer 17: disk b full");
  EXPECT_TRUE(verdict->orderly);
}

TEST(RankWatch, TheUsersErrorThatRankZeroAloneSeesNeedsNoRank) {
  RankWatch watch = watch_of(0);
  watch.add(error_of(0, "out: exists; pass --force to replace it", 2), 101);
  EXPECT_FALSE(watch.decide(101.1));
  const auto verdict = watch.decide(101.5);
  ASSERT_TRUE(verdict);
  EXPECT_EQ(verdict->line, "out: exists; pass --force to replace it");
  EXPECT_FALSE(verdict->orderly);
}

TEST(RankWatch, ALinkBetweenTwoOthersIsToldByReport) {
  RankWatch watch = watch_of(0);
  RankWatch::Report report = error_of(3, "8");
  report.kind = Kind::silent;
  watch.add(report, 101);
  const auto verdict = watch.decide(101);
  ASSERT_TRUE(verdict);
  EXPECT_THAT(verdict->line, StartsWith("rank 3 on host n1 sent no heartbeat for 8 s; last seen in carve, layer 17;"));
}

}  // namespace
}  // namespace cmoe

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "base/stage.h"
#include "base/temporary_paths.h"
#include "comm/heartbeat.h"
#include "comm/peer_sockets.h"
#include "comm/same_on_all_ranks.h"
#include "support/refusal.h"
#include "support/temporary_directory.h"
#include "support/world.h"

namespace cmoe {
namespace {

// What happens when a rank dies needs whole jobs: tests/jobs/test_faults.cpp.

TEST(PeerSockets, EveryPairIsConnectedOnce) {
  Communicator& world = test_world();
  const PeerSockets peers = connect_peers(world);
  EXPECT_EQ(peers.problem, "");
  ASSERT_EQ(static_cast<int>(peers.sockets.size()), world.size());
  for (int r = 0; r < world.size(); ++r) {
    EXPECT_EQ(peers.sockets[static_cast<size_t>(r)].open(), r != world.rank()) << "rank " << r;
    EXPECT_EQ(peers.hosts[static_cast<size_t>(r)], host_name());
  }
}

TEST(Heartbeat, AWorldOfOneHasNone) {
  const auto heartbeat = Heartbeat::start(test_world());
  EXPECT_EQ(heartbeat != nullptr, test_world().size() > 1);
}

// Every rank leaves at another time, and some stay for longer than the timeout: were a goodbye taken for a fault, or a busy
// rank for a lost one, the process would end here.
TEST(Heartbeat, LeavingInOrderIsNoFault) {
  Communicator& world = test_world();
  auto heartbeat = Heartbeat::start(world);
  if (heartbeat) heartbeat->set_timeout(1);
  world.barrier();
  std::this_thread::sleep_for(std::chrono::milliseconds(400 * world.rank()));
  heartbeat.reset();
  world.barrier();
}

TEST(Heartbeat, ManyStartsAndEnds) {
  for (int i = 0; i < 10; ++i) {
    const auto heartbeat = Heartbeat::start(test_world());
    set_stage("test", i);
  }
}

TEST(Heartbeat, AnErrorOfAllRanksReturns) {
  auto heartbeat = Heartbeat::start(test_world());
  if (!heartbeat) GTEST_SKIP() << "needs two ranks";
  heartbeat->end_together("an error that all ranks meet (expected in this test's output, once)", ExitCode::user);
}

TEST(SameOnAllRanks, EqualValuesPass) { check_same_on_all_ranks(test_world(), "build of cmoe", "0.1.0 (abc)\nRelease"); }

TEST(SameOnAllRanks, TheLowestDifferingRankIsNamedWithBothValues) {
  Communicator& world = test_world();
  if (world.size() < 2) GTEST_SKIP() << "needs two ranks";
  const std::string value = world.rank() == 0 ? "0.1.0 (abc)" : "0.1.0 (def)";
  EXPECT_EQ(refusal([&] { check_same_on_all_ranks(world, "build of cmoe", value); }),
            "rank 1 on host " + host_name() + " has another build of cmoe (0.1.0 (def)) than rank 0 on host " + host_name() +
                " (0.1.0 (abc)); start all ranks with the same program, options and files");
  const int last = world.size() - 1;
  EXPECT_THAT(refusal([&] {
                check_same_on_all_ranks(world, "configuration",
                                        world.rank() == last ? "a = 1\nseq-len = 512\nz = 3" : "a = 1\nseq-len = 2048\nz = 3");
              }),
              ::testing::HasSubstr("rank " + std::to_string(last) + " on host " + host_name() +
                                   " has another configuration (seq-len = 512) than rank 0 on host " + host_name() +
                                   " (seq-len = 2048)"));
  EXPECT_THAT(refusal([&] { check_same_on_all_ranks(world, "x", world.rank() == last ? "a\nb" : "a"); }),
              ::testing::HasSubstr("another x (b) than rank 0 on host " + host_name() + " (nothing)"));
}

TEST(TemporaryPaths, WhatIsRegisteredIsRemovedAndNothingElse) {
  const TemporaryDirectory folder;
  std::filesystem::create_directory(folder / "gone");
  write_text(folder / "gone/file", "x");
  write_text(folder / "kept", "x");
  const TemporaryPath gone(folder / "gone");
  { const TemporaryPath finished(folder / "kept"); }
  remove_temporary_paths();
  EXPECT_FALSE(std::filesystem::exists(folder / "gone"));
  EXPECT_TRUE(std::filesystem::exists(folder / "kept"));
}

TEST(Stage, IsNamedWithItsLayer) {
  EXPECT_EQ(to_string(Stage{}), "start-up");
  set_stage("carve", 17);
  EXPECT_EQ(to_string(current_stage()), "carve, layer 17");
  set_stage_layer(18);
  EXPECT_EQ(to_string(current_stage()), "carve, layer 18");
  set_stage("evaluate");
  EXPECT_EQ(to_string(current_stage()), "evaluate");
}

}  // namespace
}  // namespace cmoe

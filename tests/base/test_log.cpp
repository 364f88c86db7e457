#include <gtest/gtest.h>

#include "base/log.h"

namespace cmoe {
namespace {

// What one line of each level looks like on stderr.
std::string spoken(const LogSettings& settings) {
  set_log(settings);
  ::testing::internal::CaptureStderr();
  log_info("{} tokens", 7);
  log_warn("slow {}", "disk");
  log_error("broken");
  set_log({});
  return ::testing::internal::GetCapturedStderr();
}

TEST(Log, RankZeroSpeaks) { EXPECT_EQ(spoken({.size = 4, .host = "n1"}), "7 tokens\nwarning: slow disk\nerror: broken\n"); }

TEST(Log, OtherRanksOnlyWarnAndFail) {
  EXPECT_EQ(spoken({.rank = 2, .size = 4, .host = "n1"}), "[rank 2/4 n1] warning: slow disk\n[rank 2/4 n1] error: broken\n");
}

TEST(Log, QuietKeepsWarnings) { EXPECT_EQ(spoken({.host = "n1", .quiet = true}), "warning: slow disk\nerror: broken\n"); }

TEST(Log, ClearsAnOpenProgressLineOnce) {
  ::testing::internal::CaptureStderr();
  set_open_terminal_line(true);
  log_info("{{}} %v {}", "%v");
  log_info("b");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "\r\x1b[K{} %v %v\nb\n");
}

}  // namespace
}  // namespace cmoe

#include <gtest/gtest.h>
#include <signal.h>

#include "base/signals.h"

namespace cmoe {
namespace {

TEST(Signals, ASignalSetsTheFlag) {
  for (const auto& [signal, name] : {std::pair{SIGTERM, "SIGTERM"}, std::pair{SIGUSR1, "SIGUSR1"}}) {
    const StopSignals signals;
    EXPECT_FALSE(stop_requested());
    EXPECT_STREQ(stop_signal_name(), "");
    raise(signal);
    EXPECT_TRUE(stop_requested());
    EXPECT_STREQ(stop_signal_name(), name);
    raise(SIGUSR1);  // a second one changes nothing
    EXPECT_STREQ(stop_signal_name(), name);
  }
  EXPECT_FALSE(stop_requested());
}

TEST(Signals, EarlierHandlersComeBack) {
  static int seen = 0;
  const auto before = signal(SIGUSR1, [](int) { ++seen; });
  {
    const StopSignals signals;
    raise(SIGUSR1);
    EXPECT_EQ(seen, 0);
  }
  raise(SIGUSR1);
  EXPECT_EQ(seen, 1);
  signal(SIGUSR1, before);
}

TEST(SignalsDeathTest, ASecondTermEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto twice = [] {
    const StopSignals signals;
    raise(SIGTERM);
    raise(SIGTERM);
  };
  EXPECT_EXIT(twice(), ::testing::KilledBySignal(SIGTERM), "");
}

}  // namespace
}  // namespace cmoe

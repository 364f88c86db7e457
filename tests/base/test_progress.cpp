#include <gtest/gtest.h>

#include "base/log.h"
#include "base/progress.h"

namespace cmoe {
namespace {

// A clock that the test moves, and everything that was written.
struct Recorder {
  double now = 100;
  std::string text;
  Progress::Output output(bool speaks, bool terminal) {
    return {.speaks = speaks,
            .terminal = terminal,
            .interval_s = 5,
            .write = [this](std::string_view written) { text += written; },
            .clock = [this] { return now; }};
  }
};

TEST(Progress, WritesAPlainLineEveryInterval) {
  Recorder recorder;
  Progress progress("profile", 100'000, "tokens", recorder.output(true, false));
  recorder.now += 4;
  progress.advance(5000);
  EXPECT_EQ(recorder.text, "");
  recorder.now += 6;
  progress.advance(7340);
  EXPECT_EQ(recorder.text, "profile: 12,340/100,000 tokens  12%  1,234 tokens/s  ETA 1m 11s\n");
  recorder.text.clear();
  recorder.now += 4.9;
  progress.advance(1);
  EXPECT_EQ(recorder.text, "");
  recorder.now += 65.1;
  progress.advance(87'659);
  progress.finish();
  progress.finish();
  EXPECT_EQ(recorder.text,
            "profile: 100,000/100,000 tokens  100%  1,250 tokens/s\nprofile: 100,000 tokens in 1m 20s, 1,250 tokens/s\n");
}

TEST(Progress, RewritesOneLineOnATerminal) {
  Recorder recorder;
  {
    Progress progress("load", 0, "files", recorder.output(true, true));
    recorder.now += 10;
    progress.advance(5);
    EXPECT_EQ(recorder.text, "\r\x1b[Kload: 5 files  0.50 files/s");
    progress.finish();
    EXPECT_EQ(recorder.text, "\r\x1b[Kload: 5 files  0.50 files/s\r\x1b[Kload: 5 files in 10.0 s, 0.50 files/s\n");
    recorder.text.clear();
  }
  EXPECT_EQ(recorder.text, "");
  {
    Progress abandoned("load", 10, "files", recorder.output(true, true));
    recorder.now += 10;
    abandoned.advance(5);
    recorder.text.clear();
  }
  EXPECT_EQ(recorder.text, "\n");
}

TEST(Progress, IsSilentWhenItMayNotSpeak) {
  Recorder recorder;
  Progress progress("load", 10, "files", recorder.output(false, true));
  recorder.now += 10;
  progress.advance(5);
  progress.finish();
  EXPECT_EQ(recorder.text, "");
  set_log({.rank = 1, .size = 2, .host = "n"});
  EXPECT_FALSE(Progress::standard_output().speaks);
  set_log({.host = "n", .quiet = true});
  EXPECT_FALSE(Progress::standard_output().speaks);
  set_log({});
  EXPECT_TRUE(Progress::standard_output().speaks);
}

}  // namespace
}  // namespace cmoe

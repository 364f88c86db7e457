#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/output_directory.h"
#include "support/refusal.h"
#include "support/temporary_directory.h"

namespace cmoe {
namespace {

using ::testing::HasSubstr;

int64_t entries_of(const TemporaryDirectory& folder) {
  return std::distance(std::filesystem::directory_iterator(folder.path()), std::filesystem::directory_iterator());
}

TEST(OutputDirectory, AppearsOnlyWhenCommitted) {
  const TemporaryDirectory folder;
  {
    OutputDirectory out(folder / "out/", false);
    EXPECT_THAT(out.work_path(), ::testing::StartsWith(folder / "out.tmp-"));
    write_text(out.work_path() + "/a", "1");
    EXPECT_FALSE(std::filesystem::exists(folder / "out"));
    out.commit();
    EXPECT_THAT(refusal([&] { out.commit(); }), HasSubstr("commit after commit"));
  }
  EXPECT_EQ(read_text(folder / "out/a"), "1");
  EXPECT_EQ(entries_of(folder), 1);
}

TEST(OutputDirectory, LeavesNothingWithoutCommit) {
  const TemporaryDirectory folder;
  {
    OutputDirectory out(folder / "out", false);
    write_text(out.work_path() + "/a", "1");
  }
  EXPECT_EQ(entries_of(folder), 0);
}

TEST(OutputDirectory, ReplacesOnlyWithForceAndOnlyAtTheEnd) {
  const TemporaryDirectory folder;
  std::filesystem::create_directory(folder / "out");
  { OutputDirectory(folder / "out", false).commit(); }  // an empty folder is free
  write_text(folder / "out/old", "0");
  EXPECT_EQ(refusal([&] { OutputDirectory(folder / "out", false); }), folder / "out" + "/: exists; pass --force to replace it");
  EXPECT_EQ(refusal([&] { OutputDirectory(folder / "out/", false); }),
            folder / "out" + "/: exists; pass --force to replace it");
  { OutputDirectory abandoned(folder / "out", true); }
  EXPECT_EQ(read_text(folder / "out/old"), "0");
  OutputDirectory out(folder / "out", true);
  write_text(out.work_path() + "/new", "1");
  EXPECT_EQ(read_text(folder / "out/old"), "0");
  out.commit();
  EXPECT_EQ(read_text(folder / "out/new"), "1");
  EXPECT_FALSE(std::filesystem::exists(folder / "out/old"));
  EXPECT_EQ(entries_of(folder), 1);
}

TEST(OutputDirectory, AResultThatAppearedMeanwhileIsKept) {
  const TemporaryDirectory folder;
  {
    OutputDirectory out(folder / "out", false);
    std::filesystem::create_directory(folder / "out");
    write_text(folder / "out/other", "0");
    EXPECT_THAT(refusal([&] { out.commit(); }), HasSubstr("exists; pass --force"));
  }
  EXPECT_EQ(read_text(folder / "out/other"), "0");
  EXPECT_EQ(entries_of(folder), 1);
}

TEST(OutputDirectory, RefusesWhatIsNoPlaceForAResult) {
  const TemporaryDirectory folder;
  write_text(folder / "file", "x");
  EXPECT_EQ(refusal([&] { OutputDirectory(folder / "file", true); }),
            folder / "file" + ": exists and is not a folder; expected a new folder");
  EXPECT_THAT(refusal([&] { OutputDirectory(folder / "no/out", false); }), HasSubstr("expected an existing folder"));
  for (const char* path : {"", "/", ".", "..", "a/.."}) {
    EXPECT_EQ(refusal([&] { OutputDirectory(path, true); }),
              fmt::format("'{}': cannot be an output; expected a new folder", path));
  }
  EXPECT_THAT(refusal([] { OutputDirectory(std::filesystem::current_path().string(), true); }),
              HasSubstr("holds the current folder"));
}

}  // namespace
}  // namespace cmoe

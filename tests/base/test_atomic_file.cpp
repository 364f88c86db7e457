#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <thread>
#include <vector>

#include "base/atomic_file.h"
#include "support/refusal.h"
#include "support/temporary_directory.h"

namespace cmoe {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

int64_t entries_of(const TemporaryDirectory& folder) {
  return std::distance(std::filesystem::directory_iterator(folder.path()), std::filesystem::directory_iterator());
}

TEST(AtomicFile, AppearsOnlyWhenCommitted) {
  const TemporaryDirectory folder;
  write_text(folder / "a", "old");
  {
    AtomicFile file(folder / "a");
    file.write("new ");
    file.write("text");
    EXPECT_EQ(read_text(folder / "a"), "old");
    file.commit();
    EXPECT_EQ(read_text(folder / "a"), "new text");
    EXPECT_THAT(refusal([&] { file.write("x"); }), HasSubstr("write after commit"));
    EXPECT_THAT(refusal([&] { file.commit(); }), HasSubstr("commit after commit"));
  }
  EXPECT_EQ(read_text(folder / "a"), "new text");
  write_file_atomically(folder / "b", "");
  EXPECT_EQ(entries_of(folder), 2);
}

TEST(AtomicFile, LeavesNothingWithoutCommit) {
  const TemporaryDirectory folder;
  write_text(folder / "a", "old");
  {
    AtomicFile first(folder / "a"), second(folder / "a");  // two writers of one name do not meet
    first.write("lost");
    second.write("lost too");
  }
  EXPECT_EQ(read_text(folder / "a"), "old");
  EXPECT_EQ(entries_of(folder), 1);
}

TEST(AtomicFile, ThreadsWriteTheirRanges) {
  const TemporaryDirectory folder;
  AtomicFile file(folder / "a");
  file.preallocate(4000);
  EXPECT_EQ(std::filesystem::file_size(file.temporary_path()), 4000u);
  std::vector<std::thread> threads;
  for (int t = 3; t >= 0; --t) {
    threads.emplace_back([&file, t] { file.write_at(t * 1000, std::string(1000, static_cast<char>('a' + t)).data(), 1000); });
  }
  for (auto& thread : threads) thread.join();
  file.commit();
  EXPECT_EQ(read_text(folder / "a"),
            std::string(1000, 'a') + std::string(1000, 'b') + std::string(1000, 'c') + std::string(1000, 'd'));
}

TEST(AtomicFile, NamesThePathWhenItCannotBeMade) {
  const TemporaryDirectory folder;
  write_text(folder / "file", "");
  EXPECT_EQ(
      refusal([&] { AtomicFile(folder / "no/a"); }),
      folder / "no/a" + ": cannot create the file: No such file or directory; expected an existing folder " + folder / "no");
  EXPECT_THAT(refusal([&] { AtomicFile(folder / "file/a"); }), HasSubstr("Not a directory; expected an existing folder"));
}

TEST(AtomicFile, RefusesAReadOnlyFolder) {
  if (geteuid() == 0) GTEST_SKIP() << "root may write to a read-only folder";
  const TemporaryDirectory folder;
  std::filesystem::permissions(folder.path(), std::filesystem::perms::owner_read | std::filesystem::perms::owner_exec);
  EXPECT_EQ(refusal([&] { AtomicFile(folder / "a"); }),
            folder / "a" + ": cannot create the file: Permission denied; choose a place you may write to");
  std::filesystem::permissions(folder.path(), std::filesystem::perms::owner_all);
}

TEST(AtomicFile, TellsAFullDiskFromTheUsersMistakes) {
  const int full = open("/dev/full", O_WRONLY);
  if (full < 0) GTEST_SKIP() << "no /dev/full on this system";
  try {
    write_fully(full, 0, "abc", 3, "out/model.safetensors");
    ADD_FAILURE() << "a full disk was not noticed";
  } catch (const Error& error) {
    EXPECT_STREQ(
        error.what(),
        "out/model.safetensors: cannot write 3 bytes at 0: No space left on device; free some space or choose another disk");
    EXPECT_EQ(error.code(), ExitCode::failure);
  }
  close(full);
  try {
    fail_with_errno("out/a", "create the file", EROFS);
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), StartsWith("out/a: cannot create the file: Read-only file system"));
    EXPECT_EQ(error.code(), ExitCode::user);
  }
}

}  // namespace
}  // namespace cmoe

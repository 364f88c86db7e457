#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/temporary_paths.h"

namespace cmoe {

/// A file that appears under its name only when it is complete: it is written under a temporary name in the same folder, and
/// commit() flushes it to the disk and renames it. Without commit() the destructor removes the temporary.
/// Errors name the path: exit code 2 for what the user can change (permission, no such folder), 1 for the machine (disk full).
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  /// Reserves `bytes` on the disk, so that a full disk is found before the work, and sets the file's length.
  void preallocate(int64_t bytes);
  /// Appends after the last write(). One thread.
  void write(const void* data, int64_t bytes);
  void write(std::string_view text) { write(text.data(), static_cast<int64_t>(text.size())); }
  /// Writes at a byte offset; any number of threads at once, on ranges that do not overlap.
  void write_at(int64_t offset, const void* data, int64_t bytes);
  /// Flush, rename, flush the folder. Nothing can be written afterwards.
  void commit();

  /// The name while it is written; other processes may open it to write their own ranges before commit().
  const std::string& temporary_path() const { return temporary_; }

 private:
  std::string path_, temporary_;
  std::optional<TemporaryPath> registered_;
  int fd_ = -1;
  int64_t end_ = 0;
};

/// The whole content at once, with AtomicFile.
void write_file_atomically(const std::string& path, std::string_view content);

/// Writes all bytes at `offset` of an open file, across short writes and interruptions; `path` is for the message.
void write_fully(int fd, int64_t offset, const void* data, int64_t bytes, const std::string& path);

/// Flushes a folder's entries (created and renamed names) to the disk. File systems that cannot are left alone.
void flush_directory(const std::string& directory);

/// Throws for the errno `code` of a failed attempt to `action` ("write 4096 bytes"): who can act decides the exit code.
[[noreturn]] void fail_with_errno(const std::string& path, const std::string& action, int code);

}  // namespace cmoe

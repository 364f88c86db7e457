#include "base/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/error.h"

namespace cmoe {

void fail_with_errno(const std::string& path, const std::string& action, int code) {
  const char* text = std::strerror(code);
  switch (code) {
    case EACCES:
    case EPERM:
    case EROFS:
      fail("{}: cannot {}: {}; choose a place you may write to", path, action, text);
    case ENOENT:
    case ENOTDIR:
      fail("{}: cannot {}: {}; expected an existing folder {}", path, action, text,
           std::filesystem::absolute(path).parent_path().string());
    case ENOSPC:
    case EDQUOT:
      fail_internal("{}: cannot {}: {}; free some space or choose another disk", path, action, text);
    default:
      fail_internal("{}: cannot {}: {}", path, action, text);
  }
}

void write_fully(int fd, int64_t offset, const void* data, int64_t bytes, const std::string& path) {
  constexpr int64_t kMost = 1 << 30;  // Linux writes at most 2^31 - 4096 bytes in one call
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = pwrite(fd, next, static_cast<size_t>(std::min(bytes, kMost)), offset);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail_with_errno(path, fmt::format("write {} bytes at {}", bytes, offset), errno);
    next += written;
    offset += written;
    bytes -= written;
  }
}

void flush_directory(const std::string& directory) {
  const int fd = open(directory.empty() ? "." : directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  const int code = fsync(fd) == 0 ? 0 : errno;
  close(fd);
  if (code != 0 && code != EINVAL && code != ENOTSUP) fail_with_errno(directory, "flush the folder", code);
}

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
  static std::atomic<int> made{0};  // two files of the same name in one process stay apart
  temporary_ = fmt::format("{}.tmp-{}-{}", path_, getpid(), made++);
  fd_ = open(temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd_ < 0) fail_with_errno(path_, "create the file", errno);
  registered_.emplace(temporary_);
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  close(fd_);
  unlink(temporary_.c_str());
}

void AtomicFile::preallocate(int64_t bytes) {
  if (bytes <= 0) return;
  if (fallocate(fd_, 0, 0, bytes) == 0) return;
  if (errno != EOPNOTSUPP && errno != ENOSYS) fail_with_errno(path_, fmt::format("reserve {} bytes", bytes), errno);
  if (ftruncate(fd_, bytes) != 0) fail_with_errno(path_, fmt::format("extend to {} bytes", bytes), errno);
}

void AtomicFile::write(const void* data, int64_t bytes) {
  write_at(end_, data, bytes);
  end_ += bytes;
}

void AtomicFile::write_at(int64_t offset, const void* data, int64_t bytes) {
  if (fd_ < 0) fail_internal("{}: write after commit", path_);
  write_fully(fd_, offset, data, bytes, path_);
}

void AtomicFile::commit() {
  if (fd_ < 0) fail_internal("{}: commit after commit", path_);
  if (fsync(fd_) != 0) fail_with_errno(path_, "flush to disk", errno);
  if (rename(temporary_.c_str(), path_.c_str()) != 0) fail_with_errno(path_, "rename the finished file", errno);
  const int fd = std::exchange(fd_, -1);
  // Some network file systems report a failed write only here.
  if (close(fd) != 0) fail_with_errno(path_, "close the file", errno);
  flush_directory(std::filesystem::path(path_).parent_path().string());
}

void write_file_atomically(const std::string& path, std::string_view content) {
  AtomicFile file(path);
  file.write(content);
  file.commit();
}

}  // namespace cmoe

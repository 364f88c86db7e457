#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace cmoe {

/// A file open for positioned reads. Reads are plain `pread`s, not page faults of a mapping: on network file systems a fault
/// fetches a page where a read fetches megabytes. Safe to read from several threads.
class InputFile {
 public:
  /// @throws Error when the path is missing, is not a regular file, or cannot be opened.
  explicit InputFile(std::filesystem::path path);
  ~InputFile();
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&&) = delete;

  const std::filesystem::path& path() const { return path_; }
  /// The path as text, for messages.
  std::string name() const { return path_.string(); }
  /// Bytes in the file when it was opened.
  int64_t size() const { return size_; }

  /// Reads exactly `bytes` bytes from `offset`. @throws Error when the file ends before, or the device fails.
  void read(void* to, int64_t bytes, int64_t offset) const;

 private:
  std::filesystem::path path_;
  int fd_ = -1;
  int64_t size_ = 0;
};

/// The whole file as text. @throws Error as InputFile, and when it is larger than `max_bytes`.
std::string read_text_file(const std::filesystem::path& path, int64_t max_bytes = int64_t{1} << 30);

}  // namespace cmoe

#include "tensor/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace cmoe {

InputFile::InputFile(std::filesystem::path path) : path_(std::move(path)) {
  fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  CMOE_CHECK(fd_ >= 0, "{}: cannot be opened: {}", name(), std::strerror(errno));
  struct stat info {};
  const bool known = ::fstat(fd_, &info) == 0;
  if (!known || !S_ISREG(info.st_mode)) {
    ::close(fd_);
    fail("{}: is not a regular file", name());
  }
  size_ = info.st_size;
}

InputFile::~InputFile() {
  if (fd_ >= 0) ::close(fd_);
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), size_(std::exchange(other.size_, 0)) {}

void InputFile::read(void* to, int64_t bytes, int64_t offset) const {
  CMOE_CHECK(offset >= 0 && bytes >= 0 && bytes <= size_ && offset <= size_ - bytes,
             "{}: is cut short; expected {} bytes from byte {}, found a file of {} bytes", name(), bytes, offset, size_);
  auto* cursor = static_cast<char*>(to);
  while (bytes > 0) {
    const auto step = static_cast<size_t>(std::min<int64_t>(bytes, int64_t{1} << 30));  // one read returns at most 2^31 bytes
    const ssize_t got = ::pread(fd_, cursor, step, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_internal("{}: reading {} bytes at byte {} failed: {}", name(), step, offset, std::strerror(errno));
    CMOE_CHECK(got > 0, "{}: ends at byte {}; expected {} more bytes (was it changed while being read?)", name(), offset,
               bytes);
    cursor += got;
    offset += got;
    bytes -= got;
  }
}

std::string read_text_file(const std::filesystem::path& path, int64_t max_bytes) {
  const InputFile file(path);
  CMOE_CHECK(file.size() <= max_bytes, "{}: has {} bytes; expected at most {}", file.name(), file.size(), max_bytes);
  std::string text(static_cast<size_t>(file.size()), '\0');
  file.read(text.data(), file.size(), 0);
  return text;
}

}  // namespace cmoe

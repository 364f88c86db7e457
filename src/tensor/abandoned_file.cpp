#include "tensor/abandoned_file.h"

#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cstdlib>
#include <system_error>

#include "base/format.h"

namespace cmoe {

namespace fs = std::filesystem;

void redirect_into_memory(const fs::path& file) {
  std::error_code error;
  const std::string wanted = fs::weakly_canonical(file, error).string();
  for (const fs::directory_entry& entry : fs::directory_iterator("/proc/self/fd", error)) {
    const std::string target = fs::read_symlink(entry.path(), error).string();
    if (error || (target != wanted && target != wanted + " (deleted)")) continue;
    const int memory = memfd_create("abandoned file", MFD_CLOEXEC);
    if (memory < 0) return;
    dup2(memory, std::atoi(entry.path().filename().c_str()));
    ::close(memory);
  }
}

std::string full_disk_hint(const fs::path& file) {
  constexpr int64_t kFull = 1 << 20;
  struct statvfs space {};
  const std::string folder = file.has_parent_path() ? file.parent_path().string() : ".";
  if (statvfs(folder.c_str(), &space) != 0) return "";
  const auto left = static_cast<int64_t>(space.f_bavail * space.f_frsize);
  return left < kFull ? "; the disk has " + format_bytes(left) + " left" : "";
}

}  // namespace cmoe

#include "base/output_directory.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <system_error>

#include "base/atomic_file.h"
#include "base/error.h"

namespace fs = std::filesystem;

namespace cmoe {
namespace {

// Refused before the work starts, and again before the rename: hours may lie between.
void check_free(const std::string& path, bool force) {
  std::error_code error;
  const fs::file_status status = fs::symlink_status(path, error);
  if (!fs::exists(status)) return;
  CMOE_CHECK(fs::is_directory(status), "{}: exists and is not a folder; expected a new folder", path);
  const std::string current = fs::current_path().string() + "/";
  const std::string absolute = fs::weakly_canonical(path, error).string() + "/";
  CMOE_CHECK(!current.starts_with(absolute), "{}/: holds the current folder, which cannot be replaced; expected a new folder",
             path);
  CMOE_CHECK(force || fs::is_empty(path, error), "{}/: exists; pass --force to replace it", path);
}

// "out/", "./out" and "out" are one folder. The text stays relative when it was, as the user wrote it.
std::string without_trailing_slash(const std::string& path) {
  fs::path normal = fs::path(path).lexically_normal();
  if (!normal.has_filename()) normal = normal.parent_path();
  return normal.string();
}

}  // namespace

OutputDirectory::OutputDirectory(const std::string& path, bool force) : path_(without_trailing_slash(path)), force_(force) {
  CMOE_CHECK(!path_.empty() && path_ != "/" && path_ != "." && !path_.ends_with(".."),
             "'{}': cannot be an output; expected a new folder", path);
  check_free(path_, force);
  work_ = path_ + ".tmp-XXXXXX";
  if (!mkdtemp(work_.data())) fail_with_errno(path_, "create the folder", errno);
  registered_.emplace(work_);
  // mkdtemp makes it private; a result is as readable as any other folder of the user.
  const mode_t mask = umask(0);
  umask(mask);
  chmod(work_.c_str(), 0777 & ~mask);
}

OutputDirectory::~OutputDirectory() {
  if (committed_) return;
  std::error_code ignored;
  fs::remove_all(work_, ignored);
}

void OutputDirectory::commit() {
  if (committed_) fail_internal("{}/: commit after commit", path_);
  flush_directory(work_);
  check_free(path_, force_);
  registered_.reset();  // from here on the name may stand for the old folder
  // Both names change in one step, so that at no moment is there no result.
  const bool swapped = fs::exists(path_) && renameat2(AT_FDCWD, work_.c_str(), AT_FDCWD, path_.c_str(), RENAME_EXCHANGE) == 0;
  std::string old = swapped ? work_ : "";
  if (!swapped) {
    if (fs::exists(path_)) {  // a file system without exchange
      old = work_ + ".old";
      if (rename(path_.c_str(), old.c_str()) != 0) fail_with_errno(path_, "set the old folder aside", errno);
    }
    if (rename(work_.c_str(), path_.c_str()) != 0) {
      const int code = errno;
      if (!old.empty()) rename(old.c_str(), path_.c_str());
      fail_with_errno(path_, "rename the finished folder", code);
    }
  }
  committed_ = true;
  flush_directory(fs::path(path_).parent_path().string());
  std::error_code ignored;  // the new result stands; a left-over old one is only untidy
  if (!old.empty()) fs::remove_all(old, ignored);
}

}  // namespace cmoe

#pragma once

#include <string>

namespace cmoe {

/// While it lives, `path` (a file or a folder) is removed should the process have to end without unwinding, because another
/// rank failed. Any thread.
class TemporaryPath {
 public:
  explicit TemporaryPath(std::string path);
  ~TemporaryPath();
  TemporaryPath(const TemporaryPath&) = delete;
  TemporaryPath& operator=(const TemporaryPath&) = delete;

 private:
  std::string path_;
};

/// Removes what is registered; for the moment before the process ends. Errors are ignored.
void remove_temporary_paths();

}  // namespace cmoe

#pragma once

#include <optional>
#include <string>

#include "base/temporary_paths.h"

namespace cmoe {

/// A folder of results that appears under its name only when it is complete. Its files are written in work_path(), a folder
/// beside it named `<dir>.tmp-<suffix>`; commit() renames that. Without commit() the destructor removes the work folder.
///
/// Among several ranks one creates and commits; it broadcasts work_path(), and all write their files there. commit() follows a
/// barrier: it does not know who is still writing.
class OutputDirectory {
 public:
  /// @param force  replace what exists; the old folder is removed only after the new one is complete.
  /// @throws Error when `path` exists (an empty folder does not count) without force, is a file, or holds the current folder.
  OutputDirectory(const std::string& path, bool force);
  ~OutputDirectory();
  OutputDirectory(const OutputDirectory&) = delete;
  OutputDirectory& operator=(const OutputDirectory&) = delete;

  const std::string& work_path() const { return work_; }
  void commit();

 private:
  std::string path_, work_;
  std::optional<TemporaryPath> registered_;
  bool force_, committed_ = false;
};

}  // namespace cmoe

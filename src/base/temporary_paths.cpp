#include "base/temporary_paths.h"

#include <filesystem>
#include <mutex>
#include <set>
#include <utility>

namespace cmoe {
namespace {

struct Registry {
  std::mutex mutex;
  std::multiset<std::string> paths;
};

Registry& registry() {
  static auto* const instance = new Registry;  // outlives every thread
  return *instance;
}

}  // namespace

TemporaryPath::TemporaryPath(std::string path) : path_(std::filesystem::absolute(path).string()) {
  const std::lock_guard lock(registry().mutex);
  registry().paths.insert(path_);
}

TemporaryPath::~TemporaryPath() {
  const std::lock_guard lock(registry().mutex);
  if (const auto at = registry().paths.find(path_); at != registry().paths.end()) registry().paths.erase(at);
}

void remove_temporary_paths() {
  const std::lock_guard lock(registry().mutex);
  for (const std::string& path : registry().paths) {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
}

}  // namespace cmoe

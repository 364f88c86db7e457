#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>

#include "base/error.h"

namespace cmoe {

/// A folder of its own, removed with all it holds.
class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "cmoe-test-XXXXXX").string();
    if (!::mkdtemp(pattern.data())) throw std::runtime_error("mkdtemp failed");
    path_ = pattern;
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

/// Replaces the file: some file systems flush one that is truncated and written again, which thousands of tries would notice.
inline void write_bytes(const std::filesystem::path& path, const std::string& bytes) {
  std::filesystem::remove(path);
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

inline std::string read_bytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// `action` must throw an Error whose message holds every one of `parts`, and whose exit code is the user's.
template <class... Parts>
void expect_error(const std::function<void()>& action, const Parts&... parts) {
  try {
    action();
    ADD_FAILURE() << "expected an error with: " << ::testing::PrintToString(std::make_tuple(parts...));
  } catch (const Error& error) {
    for (const std::string& part : {std::string(parts)...}) EXPECT_THAT(error.what(), ::testing::HasSubstr(part));
    EXPECT_EQ(error.code(), ExitCode::user) << error.what();
  }
}

}  // namespace cmoe

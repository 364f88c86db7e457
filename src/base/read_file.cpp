#include "base/read_file.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>

#include "base/error.h"

namespace cmoe {

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  CMOE_CHECK(file, "{}: cannot be read: {}", path, std::strerror(errno));
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace cmoe

#include "comm/communicator.h"

#include <unistd.h>

#include <array>

namespace cmoe {

std::string Communicator::broadcast_string(std::string text, int root) {
  int64_t length = static_cast<int64_t>(text.size());
  broadcast(std::span(&length, 1), root);
  text.resize(static_cast<size_t>(length));
  broadcast_bytes(text.data(), length, root);
  return text;
}

std::vector<std::string> Communicator::all_gather_strings(const std::string& mine) {
  std::vector<int64_t> lengths;
  const std::vector<std::byte> all = all_gather_bytes(std::as_bytes(std::span(mine)), &lengths);
  std::vector<std::string> texts;
  const char* next = reinterpret_cast<const char*>(all.data());
  for (const int64_t length : lengths) {
    texts.emplace_back(length > 0 ? std::string(next, static_cast<size_t>(length)) : std::string());
    next += length;
  }
  return texts;
}

std::string host_name() {
  std::array<char, 256> name{};
  if (gethostname(name.data(), name.size() - 1) != 0) return "unknown-host";
  return name.data();
}

}  // namespace cmoe

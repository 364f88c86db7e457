#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace cmoe {

/// Streaming SHA-256. Source: FIPS 180-4, section 6.2.
class Sha256 {
 public:
  void update(const void* data, size_t bytes);
  /// 64 hexadecimal digits of all data so far; the object is used up.
  std::string hex();

 private:
  void take(const uint8_t* blocks, size_t count);

  std::array<uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> pending_{};
  size_t pending_bytes_ = 0;
  uint64_t total_bytes_ = 0;
};

std::string sha256_hex(std::string_view data);

/// Hash of a file's content. @throws Error naming the path when it cannot be read.
std::string sha256_of_file(const std::string& path);

}  // namespace cmoe

#include "base/sha256.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "base/error.h"
#include "base/sha256_blocks.h"

namespace cmoe {
namespace {

Sha256Blocks best_blocks() {
  const Sha256Blocks instructions = find_sha256_instructions();
  return instructions ? instructions : sha256_blocks_plain;
}

}  // namespace

void Sha256::take(const uint8_t* blocks, size_t count) {
  static const Sha256Blocks take_blocks = best_blocks();
  take_blocks(state_, blocks, count);
}

void Sha256::update(const void* data, size_t bytes) {
  const auto* next = static_cast<const uint8_t*>(data);
  total_bytes_ += bytes;
  if (pending_bytes_ > 0) {
    const size_t taken = std::min(bytes, pending_.size() - pending_bytes_);
    if (taken > 0) std::memcpy(pending_.data() + pending_bytes_, next, taken);
    pending_bytes_ += taken;
    next += taken;
    bytes -= taken;
    if (pending_bytes_ < pending_.size()) return;
    take(pending_.data(), 1);
    pending_bytes_ = 0;
  }
  const size_t whole = bytes / pending_.size();
  take(next, whole);
  next += whole * pending_.size();
  bytes -= whole * pending_.size();
  if (bytes > 0) std::memcpy(pending_.data(), next, bytes);
  pending_bytes_ = bytes;
}

std::string Sha256::hex() {
  const uint64_t bits = total_bytes_ * 8;
  const uint8_t one = 0x80, zero = 0;
  update(&one, 1);
  while (pending_bytes_ != 56) update(&zero, 1);
  std::array<uint8_t, 8> length;
  for (size_t i = 0; i < 8; ++i) length[i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
  update(length.data(), length.size());
  std::string text;
  for (const uint32_t word : state_) text += fmt::format("{:08x}", word);
  return text;
}

std::string sha256_hex(std::string_view data) {
  Sha256 hash;
  hash.update(data.data(), data.size());
  return hash.hex();
}

std::string sha256_of_file(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  CMOE_CHECK(file, "{}: cannot open: {}", path, std::strerror(errno));
  Sha256 hash;
  std::vector<char> buffer(1 << 20);
  while (const size_t bytes = std::fread(buffer.data(), 1, buffer.size(), file.get())) hash.update(buffer.data(), bytes);
  if (std::ferror(file.get())) fail("{}: cannot read: {}", path, std::strerror(errno));
  return hash.hex();
}

}  // namespace cmoe

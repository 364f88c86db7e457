#include "data/byte_level.h"

#include <array>

#include "data/utf8.h"

namespace cmoe {
namespace {

// Bytes that print keep their own code point; the other 68 take U+0100, U+0101, ... in order.
bool prints(int byte) { return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae; }

struct Alphabet {
  std::array<char32_t, 256> character{};
  std::array<int16_t, 0x200> byte{};

  Alphabet() {
    byte.fill(-1);
    char32_t next = 0x100;
    for (int b = 0; b < 256; ++b) {
      const char32_t c = prints(b) ? static_cast<char32_t>(b) : next++;
      character[static_cast<size_t>(b)] = c;
      byte[c] = static_cast<int16_t>(b);
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet instance;
  return instance;
}

}  // namespace

char32_t byte_to_character(uint8_t byte) { return alphabet().character[byte]; }

std::optional<std::string> find_token_bytes(std::string_view token) {
  std::string bytes;
  bytes.reserve(token.size());
  for (size_t position = 0; position < token.size();) {
    const char32_t c = next_code_point(token, position);
    const int16_t byte = c < alphabet().byte.size() ? alphabet().byte[c] : int16_t{-1};
    if (byte < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(byte));
  }
  return bytes;
}

std::string to_byte_level(std::string_view bytes) {
  std::string token;
  for (char b : bytes) append_utf8(token, byte_to_character(static_cast<uint8_t>(b)));
  return token;
}

}  // namespace cmoe

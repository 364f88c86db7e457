#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace cmoe {

/// The printable alphabet in which GPT-2 writes bytes: each of the 256 bytes has one character (a space is 'Ġ').
/// Source: `bytes_to_unicode` of the GPT-2 release.
char32_t byte_to_character(uint8_t byte);

/// The bytes that a token of the vocabulary stands for; nothing when a character is outside the alphabet.
std::optional<std::string> find_token_bytes(std::string_view token);

/// The vocabulary's spelling of raw bytes.
std::string to_byte_level(std::string_view bytes);

}  // namespace cmoe

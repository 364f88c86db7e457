#pragma once

#include <cstdint>

namespace cmoe {

inline constexpr uint64_t kGoldenGamma = 0x9e3779b97f4a7c15u;

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
constexpr uint64_t mix_bits(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/// 64 well-mixed bits of (key, counter): a stateless generator, so that a value depends on what it is for and not on who
/// asks first.
constexpr uint64_t random_bits(uint64_t key, uint64_t counter) {
  return mix_bits(mix_bits(key + kGoldenGamma) + counter * kGoldenGamma);
}

}  // namespace cmoe

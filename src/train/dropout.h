#pragma once

#include <cstdint>
#include <span>

#include "tensor/tensor.h"

namespace cmoe {

/// 64 well-mixed bits of (key, counter): a stateless generator, so that a mask depends on what it masks and not on who asks
/// first. Source: the finaliser of SplitMix64 (Steele, Lea, Flood 2014), once over the key and once over both.
constexpr uint64_t random_bits(uint64_t key, uint64_t counter) {
  const auto mix = [](uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  };
  return mix(mix(key + 0x9e3779b97f4a7c15u) + counter * 0x9e3779b97f4a7c15u);
}

/// The mask of one adapter in one sequence of one step.
struct DropoutMask {
  uint64_t key = 0;
  float probability = 0;  ///< of an element to be dropped, in steps of 2^-16; 0 keeps all

  bool active() const { return probability > 0; }
  /// out[i] = x[i] * mask[tokens[i]] / (1 - probability), or out[i] += that. x and out [rows, d]; tokens[i] is the row's
  /// number in its sequence, so that a row's mask does not depend on where a batch put it; empty means row i.
  void apply(const Tensor& x, std::span<const int32_t> tokens, Tensor& out, bool accumulate) const;
};

}  // namespace cmoe

#include "comm/kth_largest.h"

#include <array>
#include <bit>
#include <cmath>

#include "base/error.h"

namespace cmoe {
namespace {

// Unsigned integers in the order of the floats; -0 counts as +0.
uint32_t ordered(float value) {
  const auto bits = std::bit_cast<uint32_t>(value + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

float unordered(uint32_t key) { return std::bit_cast<float>(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

}  // namespace

float kth_largest(std::span<const float> values, int64_t k, Communicator& comm) {
  std::array<int64_t, 2> totals{static_cast<int64_t>(values.size()), 0};
  for (float value : values) totals[1] += std::isnan(value) ? 1 : 0;
  comm.all_reduce_sum(totals);
  CMOE_CHECK(totals[1] == 0, "threshold: {} of {} router scores are NaN", totals[1], totals[0]);
  CMOE_CHECK(k >= 1 && k <= totals[0], "threshold: no {}-th largest among {} router scores", k, totals[0]);
  uint32_t prefix = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    std::array<int64_t, 256> count{};
    for (float value : values) {
      const uint32_t key = ordered(value);
      if (shift == 24 || (key >> (shift + 8)) == (prefix >> (shift + 8))) ++count[(key >> shift) & 255u];
    }
    comm.all_reduce_sum(count);
    uint32_t bucket = 255;
    while (k > count[bucket]) k -= count[bucket--];
    prefix |= bucket << shift;
  }
  return unordered(prefix);
}

}  // namespace cmoe

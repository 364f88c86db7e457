#include "data/python_random.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <numeric>
#include <unordered_set>

namespace cmoe {
namespace {

constexpr size_t kSize = 624;
constexpr size_t kShift = 397;

}  // namespace

PythonRandom::PythonRandom(uint64_t seed) : index_(kSize) {
  state_[0] = 19650218u;
  for (uint32_t i = 1; i < kSize; ++i) state_[i] = 1812433253u * (state_[i - 1] ^ (state_[i - 1] >> 30)) + i;
  // The seed's 32-bit digits, least first, are mixed into the state.
  const uint32_t key[] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  const uint32_t digits = key[1] == 0 ? 1 : 2;
  size_t i = 1;
  const auto step = [&] {
    if (++i == kSize) {
      state_[0] = state_[kSize - 1];
      i = 1;
    }
  };
  for (uint32_t round = 0, j = 0; round < kSize; ++round, j = (j + 1) % digits) {
    state_[i] = (state_[i] ^ ((state_[i - 1] ^ (state_[i - 1] >> 30)) * 1664525u)) + key[j] + j;
    step();
  }
  for (size_t round = 1; round < kSize; ++round) {
    state_[i] = (state_[i] ^ ((state_[i - 1] ^ (state_[i - 1] >> 30)) * 1566083941u)) - static_cast<uint32_t>(i);
    step();
  }
  state_[0] = 0x80000000u;
}

uint32_t PythonRandom::next() {
  if (index_ == kSize) {
    for (size_t i = 0; i < kSize; ++i) {
      const uint32_t y = (state_[i] & 0x80000000u) | (state_[(i + 1) % kSize] & 0x7fffffffu);
      state_[i] = state_[(i + kShift) % kSize] ^ (y >> 1) ^ ((y & 1) != 0 ? 0x9908b0dfu : 0u);
    }
    index_ = 0;
  }
  uint32_t y = state_[index_++];
  y ^= y >> 11;
  y ^= (y << 7) & 0x9d2c5680u;
  y ^= (y << 15) & 0xefc60000u;
  return y ^ (y >> 18);
}

uint64_t PythonRandom::bits(int count) {
  assert(count >= 1 && count <= 64);
  uint64_t value = 0;
  for (int done = 0; done < count; done += 32) {
    const int take = std::min(32, count - done);
    value |= static_cast<uint64_t>(next() >> (32 - take)) << done;
  }
  return value;
}

int64_t PythonRandom::below(int64_t limit) {
  assert(limit >= 1);
  const int width = static_cast<int>(std::bit_width(static_cast<uint64_t>(limit)));
  for (;;) {
    const uint64_t value = bits(width);
    if (value < static_cast<uint64_t>(limit)) return static_cast<int64_t>(value);
  }
}

std::vector<int64_t> PythonRandom::sample(int64_t population, int64_t count) {
  assert(count >= 0 && count <= population);
  // Python takes a list for small populations and a set for large ones; the two draw differently.
  int64_t list_limit = 21;
  if (count > 5) {
    int64_t power = 1;
    while (power < 3 * count) power *= 4;
    list_limit += power;
  }
  std::vector<int64_t> drawn;
  if (population <= list_limit) {
    std::vector<int64_t> pool(static_cast<size_t>(population));
    std::iota(pool.begin(), pool.end(), 0);
    for (int64_t left = population; left > population - count; --left) {
      const auto at = static_cast<size_t>(below(left));
      drawn.push_back(pool[at]);
      pool[at] = pool[static_cast<size_t>(left) - 1];
    }
    return drawn;
  }
  std::unordered_set<int64_t> seen;
  while (static_cast<int64_t>(drawn.size()) < count) {
    const int64_t index = below(population);
    if (seen.insert(index).second) drawn.push_back(index);
  }
  return drawn;
}

}  // namespace cmoe

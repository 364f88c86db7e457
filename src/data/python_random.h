#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace cmoe {

/// Python's `random.Random(seed)`: the same numbers for the same calls, so that published samples can be drawn again.
/// Source: CPython 3.11, `_randommodule.c` (Mersenne Twister MT19937, init_by_array) and `random.py` (randbelow by rejection).
class PythonRandom {
 public:
  explicit PythonRandom(uint64_t seed);

  /// `getrandbits(bits)`, 1 <= bits <= 64.
  uint64_t bits(int bits);
  /// `randrange(limit)`: uniform in [0, limit), limit >= 1.
  int64_t below(int64_t limit);
  /// `randint(low, high)`: uniform in [low, high], both ends included.
  int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }
  /// `sample(range(population), count)`: indices in the order drawn, all different; 0 <= count <= population.
  std::vector<int64_t> sample(int64_t population, int64_t count);

 private:
  uint32_t next();

  std::array<uint32_t, 624> state_;
  size_t index_;
};

}  // namespace cmoe

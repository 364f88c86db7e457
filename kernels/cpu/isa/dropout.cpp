// Dropout by a stateless generator: 64 bits of (key, counter) mask four elements, 16 bits each.
#include "kernels/cpu/isa/kernels.h"
#include "kernels/cpu/isa/simd.h"

namespace cmoe::kernels::CMOE_ISA {
namespace {

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15;
constexpr int kWords = kLanes / 2;  // 64-bit words of a vector: the bits of 2 kLanes elements
typedef uint64_t Words __attribute__((vector_size(kWords * 8)));
typedef uint16_t Shorts __attribute__((vector_size(kLanes * 2), may_alias));

CMOE_INLINE Words mix(Words z) {
  z = (z ^ (z >> 30)) * uint64_t{0xbf58476d1ce4e5b9};
  z = (z ^ (z >> 27)) * uint64_t{0x94d049bb133111eb};
  return z ^ (z >> 31);
}

}  // namespace

void dropout(const float* x, int64_t ldx, int64_t rows, int64_t n, uint64_t state, const uint64_t* counter, uint32_t threshold,
             float keep, float* y, int64_t ldy, bool add) {
  Words steps;
  for (int i = 0; i < kWords; ++i) steps[i] = static_cast<uint64_t>(i) * kGolden;
  const Vec factor = broadcast(keep);
  const IntVec limit = broadcast_bits(static_cast<int32_t>(threshold));
  for (int64_t r = 0; r < rows; ++r, x += ldx, y += ldy) {
    Words seeds = steps + (state + counter[r] * kGolden);
    for (int64_t i = 0; i < n; i += 2 * kLanes, seeds += kWords * kGolden) {
      // A word's elements lie from its lowest bits on, so in memory they are in order.
      const Words bits = mix(seeds);
      Shorts halves[2];
      __builtin_memcpy(halves, &bits, sizeof(bits));
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const int64_t at = i + half * kLanes, width = smaller(n - at, kLanes);
        if (width <= 0) break;
        const IntVec kept = __builtin_convertvector(halves[half], IntVec) >= limit;
        Vec value = (width == kLanes ? load(x + at) : load_part(x + at, width, 0.0f)) * factor;
        value = kept ? value : Vec{};
        if (width == kLanes) {
          store(y + at, add ? load(y + at) + value : value);
        } else {
          store_part(y + at, add ? load_part(y + at, width, 0.0f) + value : value, width);
        }
      }
    }
  }
}

}  // namespace cmoe::kernels::CMOE_ISA

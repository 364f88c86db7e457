// Row and element operations. Sums run over blocks of 32 or 64 elements folded by halves, so their order is the same for
// every instruction set.
#include "kernels/cpu/isa/kernels.h"
#include "kernels/cpu/isa/simd.h"

namespace cmoe::kernels::CMOE_ISA {
namespace {

// y[i] = f(vectors at i) over [0, n), the tail through zero-padded vectors.
template <class F>
CMOE_INLINE void for_each_vector(int64_t n, const float* a, const float* b, float* y, F f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, f(load(a + i), load(b + i)));
  if (i < n) store_part(y + i, f(load_part(a + i, n - i, 0.0f), load_part(b + i, n - i, 0.0f)), n - i);
}

}  // namespace

void rms_norm(const float* x, const float* weight, int64_t n, float epsilon, float* y) {
  constexpr int kBlock = 32, kVecs = kBlock / kLanes;
  Vec sums[kVecs] = {};
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    for (int v = 0; v < kVecs; ++v) {
      const Vec element = load(x + i + v * kLanes);
      sums[v] = fma(element, element, sums[v]);
    }
  }
  for (int v = 0; v < kVecs && i < n; ++v, i += kLanes) {
    const Vec element = load_part(x + i, n - i, 0.0f);
    sums[v] = fma(element, element, sums[v]);
  }
  const float sum = sum_block<kBlock>(sums);
  const double mean = static_cast<double>(sum) / static_cast<double>(n) + static_cast<double>(epsilon);
  const Vec scale = broadcast(static_cast<float>(1.0 / __builtin_sqrt(mean)));
  for_each_vector(n, x, weight, y, [scale](Vec element, Vec w) { return element * scale * w; });
}

void rope(float* x, const float* cos, const float* sin, int64_t half) {
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Vec a = load(x + i), b = load(x + half + i), c = load(cos + i), s = load(sin + i);
    store(x + i, fma(-b, s, a * c));
    store(x + half + i, fma(a, s, b * c));
  }
  if (i < half) {
    const int64_t n = half - i;
    const Vec a = load_part(x + i, n, 0.0f), b = load_part(x + half + i, n, 0.0f);
    const Vec c = load_part(cos + i, n, 0.0f), s = load_part(sin + i, n, 0.0f);
    store_part(x + i, fma(-b, s, a * c), n);
    store_part(x + half + i, fma(a, s, b * c), n);
  }
}

void swiglu(const float* gate, const float* up, int64_t n, float* h) {
  for_each_vector(n, gate, up, h, [](Vec g, Vec u) { return g / (broadcast(1.0f) + exp(-g)) * u; });
}

void add(const float* x, int64_t n, float* y) {
  for_each_vector(n, y, x, y, [](Vec a, Vec b) { return a + b; });
}

void exp_all(const float* x, int64_t n, float* y) {
  for_each_vector(n, x, x, y, [](Vec a, Vec) { return exp(a); });
}

void widen_bf16(const uint16_t* x, int64_t n, float* y) {
  auto* bits = reinterpret_cast<uint32_t __attribute__((may_alias))*>(y);
  for (int64_t i = 0; i < n; ++i) bits[i] = static_cast<uint32_t>(x[i]) << 16;
}

void narrow_bf16(const float* x, int64_t n, uint16_t* y) {
  const auto* bits = reinterpret_cast<const uint32_t __attribute__((may_alias))*>(x);
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t b = bits[i];
    const uint32_t rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
    y[i] = static_cast<uint16_t>((b & 0x7fffffffu) > 0x7f800000u ? (b >> 16) | 0x40u : rounded);
  }
}

void sum_exp(const float* x, int64_t n, float* max_out, double* sum_out) {
  Vec top = broadcast(-__builtin_inff());
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) top = max(load(x + i), top);
  if (i < n) top = max(load_part(x + i, n - i, -__builtin_inff()), top);
  const float highest = max_lanes(top);
  constexpr int kBlock = 64, kVecs = kBlock / kLanes;
  double sum = 0;
  for (i = 0; i < n; i += kBlock) {
    Vec block[kVecs];
    for (int v = 0; v < kVecs; ++v) {
      const int64_t at = i + v * kLanes;
      const Vec element = at + kLanes <= n ? load(x + at) : load_part(x + at, n - at, -__builtin_inff());
      block[v] = exp(element - broadcast(highest));
    }
    sum += static_cast<double>(sum_block<kBlock>(block));
  }
  *max_out = highest;
  *sum_out = sum;
}

}  // namespace cmoe::kernels::CMOE_ISA

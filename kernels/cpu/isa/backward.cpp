// Row operations of training. Sums run over blocks of 32 elements folded by halves, as in elementwise.cpp.
#include "kernels/cpu/isa/kernels.h"
#include "kernels/cpu/isa/simd.h"

namespace cmoe::kernels::CMOE_ISA {
namespace {

constexpr int kBlock = 32, kVecs = kBlock / kLanes;

// sum of f(i) over [0, n) for a vector function of the element index; `valid` is what remains from i on.
template <class F>
CMOE_INLINE float sum_over(int64_t n, F f) {
  Vec sums[kVecs] = {};
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    for (int v = 0; v < kVecs; ++v) sums[v] = f(i + v * kLanes, int64_t{kLanes}, sums[v]);
  }
  for (int v = 0; v < kVecs && i < n; ++v, i += kLanes) sums[v] = f(i, smaller(n - i, kLanes), sums[v]);
  return sum_block<kBlock>(sums);
}

CMOE_INLINE Vec load_some(const float* p, int64_t valid) { return valid == kLanes ? load(p) : load_part(p, valid, 0.0f); }
CMOE_INLINE void store_some(float* p, Vec v, int64_t valid) {
  if (valid == kLanes) {
    store(p, v);
  } else {
    store_part(p, v, valid);
  }
}

// Calls f(i, valid) for every vector of [0, n).
template <class F>
CMOE_INLINE void for_each(int64_t n, F f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i, int64_t{kLanes});
  if (i < n) f(i, n - i);
}

}  // namespace

float dot(const float* a, const float* b, int64_t n) {
  return sum_over(
      n, [&](int64_t i, int64_t valid, Vec sum) { return fma(load_some(a + i, valid), load_some(b + i, valid), sum); });
}

void add_scaled(const float* x, float factor, int64_t n, float* y) {
  const Vec a = broadcast(factor);
  for_each(
      n, [&](int64_t i, int64_t valid) { store_some(y + i, fma(a, load_some(x + i, valid), load_some(y + i, valid)), valid); });
}

void rms_norm_backward(const float* x, const float* weight, const float* dy, int64_t n, float epsilon, float* dx) {
  const float square = sum_over(n, [&](int64_t i, int64_t valid, Vec sum) {
    const Vec v = load_some(x + i, valid);
    return fma(v, v, sum);
  });
  const float product = sum_over(n, [&](int64_t i, int64_t valid, Vec sum) {
    return fma(load_some(dy + i, valid) * load_some(weight + i, valid), load_some(x + i, valid), sum);
  });
  const double mean = static_cast<double>(square) / static_cast<double>(n) + static_cast<double>(epsilon);
  const double scale = 1.0 / __builtin_sqrt(mean);
  const Vec a = broadcast(static_cast<float>(scale));
  const Vec b = broadcast(static_cast<float>(-scale * static_cast<double>(product) / (mean * static_cast<double>(n))));
  for_each(n, [&](int64_t i, int64_t valid) {
    const Vec direct = load_some(dy + i, valid) * load_some(weight + i, valid) * a;
    store_some(dx + i, load_some(dx + i, valid) + fma(load_some(x + i, valid), b, direct), valid);
  });
}

void swiglu_backward(const float* gate, const float* up, const float* dh, int64_t n, float* dgate, float* dup) {
  const Vec one = broadcast(1.0f);
  for_each(n, [&](int64_t i, int64_t valid) {
    const Vec g = load_some(gate + i, valid), u = load_some(up + i, valid), d = load_some(dh + i, valid);
    const Vec sigmoid = one / (one + exp(-g));
    const Vec silu = g * sigmoid;
    store_some(dgate + i, d * u * fma(silu, one - sigmoid, sigmoid), valid);
    store_some(dup + i, d * silu, valid);
  });
}

void exp_scaled(const float* x, int64_t n, float scale, float shift, float factor, float* y) {
  const Vec a = broadcast(scale), s = broadcast(-shift), f = broadcast(factor);
  for_each(n, [&](int64_t i, int64_t valid) { store_some(y + i, exp(fma(load_some(x + i, valid), a, s)) * f, valid); });
}

void softmax_backward(float* s, float* dp, int64_t tokens, int64_t group, int64_t seen, const float* log_sum, const float* mean,
                      float scale) {
  const Vec a = broadcast(scale);
  IntVec lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  for (int64_t t = 0; t < tokens; ++t) {
    const IntVec visible = broadcast_bits(static_cast<int32_t>(smaller(seen + t, kPanel)));
    for (int64_t head = 0; head < group; ++head, ++log_sum, ++mean) {
      const Vec shift = broadcast(-*log_sum), m = broadcast(*mean);
      for (int i = 0; i < kPanel; i += kLanes, s += kLanes, dp += kLanes) {
        const IntVec sees = lanes + i < visible;
        const Vec p = exp(fma(load(s), a, shift)), ds = p * (load(dp) - m) * a;
        store(s, sees ? p : Vec{});
        store(dp, sees ? ds : Vec{});
      }
    }
  }
}

}  // namespace cmoe::kernels::CMOE_ISA

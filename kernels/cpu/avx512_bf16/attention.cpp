// Attention in bf16: queries, keys, values and the softmax's weights are rounded to bf16, sums and softmax stay f32.
#include "kernels/cpu/avx512_bf16/pairs.h"
#include "kernels/cpu/isa/attention_tile.h"

namespace cmoe::kernels {
namespace avx512_bf16 {
namespace {

constexpr int64_t kValuePanel = kKeyBlock * kPanel;  // bf16 elements: [kKeyBlock / 2 pairs of keys][kPanel of head_dim][2]

template <int R>
inline constexpr int kVecsAtOnce = R <= 6 ? 2 * kVecs : kVecs;  // with few rows more sums hide the latency

template <int R>
auto pairs_of(const uint32_t* packed) {
  return [packed](int r, int64_t k) { return packed[k * R + r]; };
}

// s [R][kKeyBlock] of queries [head_dim / 2][R][2] and keys in panels [head_dim / 2][kPanel][2].
template <int R>
void score_rows(const uint32_t* q, const uint16_t* keys, int64_t head_dim, float* s) {
  constexpr int V = kVecsAtOnce<R>;
  const int64_t steps = (head_dim + 1) / 2, panel = steps * kPanel * 2;
  for (int64_t c = 0; c < kKeyBlock; c += V * kLanes) {
    Vec acc[R][V] = {};
    accumulate<R, V>(pairs_of<R>(q), keys + c / kPanel * panel, panel, steps, acc);
    write_tile(acc, s + c, kKeyBlock, V * kLanes, false);
  }
}

template <int R, int V>
CMOE_INLINE void mix_columns(const uint32_t* p, const uint16_t* values, int64_t steps, const float* alpha, int64_t width,
                             float* o) {
  Vec acc[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const Vec factor = broadcast(alpha[r]);
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) acc[r][v] = load(o + r * width + v * kLanes) * factor;
  }
  accumulate<R, V>(pairs_of<R>(p), values, kValuePanel, steps, acc);
  write_tile(acc, o, width, V * kLanes, false);
}

// o [R][width] = o alpha + p values over `steps` pairs of keys; p [kKeyBlock / 2][R][2].
template <int R>
void mix_rows(const uint32_t* p, const uint16_t* values, int64_t steps, const float* alpha, int64_t width, float* o) {
  constexpr int V = kVecsAtOnce<R>;
  int64_t c = 0;
  for (; c + V * kLanes <= width; c += V * kLanes)
    mix_columns<R, V>(p, values + c / kPanel * kValuePanel, steps, alpha, width, o + c);
  for (; c < width; c += kPanel) mix_columns<R, kVecs>(p, values + c / kPanel * kValuePanel, steps, alpha, width, o + c);
}

using Score = void (*)(const uint32_t*, const uint16_t*, int64_t, float*);
using Mix = void (*)(const uint32_t*, const uint16_t*, int64_t, const float*, int64_t, float*);
constexpr Score kScore[] = {nullptr,        score_rows<1>,  score_rows<2>,  score_rows<3>,  score_rows<4>,
                            score_rows<5>,  score_rows<6>,  score_rows<7>,  score_rows<8>,  score_rows<9>,
                            score_rows<10>, score_rows<11>, score_rows<12>, score_rows<13>, score_rows<14>};
constexpr Mix kMix[] = {nullptr,      mix_rows<1>,  mix_rows<2>,  mix_rows<3>,  mix_rows<4>,
                        mix_rows<5>,  mix_rows<6>,  mix_rows<7>,  mix_rows<8>,  mix_rows<9>,
                        mix_rows<10>, mix_rows<11>, mix_rows<12>, mix_rows<13>, mix_rows<14>};

const uint32_t* pairs_in(const float* packed) { return reinterpret_cast<const uint32_t*>(packed); }
const uint16_t* panels_in(const float* packed) { return reinterpret_cast<const uint16_t*>(packed); }

__mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>(n >= kLanes ? 0xffff : n <= 0 ? 0 : (1 << n) - 1); }

struct PairProducts {
  static constexpr int64_t kRows = kTileRows, kStep = 2;
  static int64_t key_floats(int64_t head_dim) { return (head_dim + 1) / 2 * kKeyBlock; }

  static void pack_queries(const float* q, int64_t n, int64_t head_dim, float* packed) {
    pack_pairs(q, head_dim, n, head_dim, packed, n);
  }

  // On the way it asks for the next block of keys: decoding waits for memory otherwise. (Asking beyond the end is harmless.)
  static void pack_keys(const float* key, int64_t count, int64_t head_dim, float* keys) {
    const int64_t panel = (head_dim + 1) / 2 * kPanel;
    for (int64_t j = 0; j < kKeyBlock; j += kLanes) {
      for (int64_t i = 0; i < kLanes; ++i) {
        for (int64_t d = 0; d < head_dim; d += 16) __builtin_prefetch(key + (kKeyBlock + j + i) * head_dim + d, 0, 2);
      }
      const int64_t rows = count < j ? 0 : smaller(count - j, kLanes);
      pack_pairs(key + j * head_dim, head_dim, rows, head_dim, keys + j / kPanel * panel + j % kPanel, kPanel);
    }
  }

  // Panels [kKeyBlock / 2][kPanel][2], of pairs of keys; an odd last key is padded with zero.
  static const float* pack_values(const float* value, int64_t count, int64_t head_dim, int64_t width, float* memory) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                           20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    auto* panels = reinterpret_cast<uint16_t*>(memory);
    for (int64_t j = 0; j < count; j += 2) {
      for (int64_t d = 0; d < width; d += kLanes) {
        const float* at = value + j * head_dim + d;
        __builtin_prefetch(at + kKeyBlock * head_dim, 0, 2);
        __builtin_prefetch(at + (kKeyBlock + 1) * head_dim, 0, 2);
        const __mmask16 lanes = first_lanes(head_dim - d);
        const Vec even = _mm512_maskz_loadu_ps(lanes, at);
        const Vec odd = j + 1 < count ? Vec(_mm512_maskz_loadu_ps(lanes, at + head_dim)) : Vec{};
        const __m512i apart = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even));
        _mm512_storeu_si512(panels + d / kPanel * kValuePanel + (j / 2 * kPanel + d % kPanel) * 2,
                            _mm512_permutexvar_epi16(order, apart));
      }
    }
    return memory;
  }

  static void score(int64_t rows, const float* q, const float* keys, int64_t head_dim, float* s) {
    kScore[rows](pairs_in(q), panels_in(keys), head_dim, s);
  }

  // Within 6e-6 of e^x: the weight is rounded to 8 bits next. 2^n times a polynomial for 2^f, f in [-1/2, 1/2].
  static CMOE_INLINE Vec weight(Vec x) {
    const Vec power = max(broadcast(-150.0f), x * broadcast(1.44269504f));
    const Vec n = _mm512_maskz_roundscale_ps(0xffff, power, 0), f = power - n;
    Vec p = broadcast(9.67603710e-3f);
    p = fma(p, f, broadcast(5.60057883e-2f));
    p = fma(p, f, broadcast(2.40221678e-1f));
    p = fma(p, f, broadcast(6.93105334e-1f));
    return scale(fma(p, f, broadcast(1.0f)), n);
  }

  static void mix(int64_t rows, const float* p, const float* values, int64_t width, int64_t keys, const float* alpha,
                  float* o) {
    alignas(64) uint32_t packed[kKeyBlock / 2 * kTileRows + kLanes];
    pack_pairs(p, kKeyBlock, rows, keys, packed, rows);
    kMix[rows](packed, panels_in(values), keys / 2, alpha, width, o);
  }

  static void mix_row(const float* p, const float* values, int64_t width, int64_t from, int64_t to, float* o) {
    for (int64_t j = from; j < to; j += 2) {
      const auto weights = static_cast<uint32_t>(round_pairs(p + j, smaller(to - j, 2))[0]);
      const IntVec seen = broadcast_bits(j + 1 < to ? -1 : 0xffff);  // a key that is not seen may hold NaN
      for (int64_t d = 0; d < width; d += kLanes) {
        const uint16_t* at = panels_in(values) + d / kPanel * kValuePanel + (j / 2 * kPanel + d % kPanel) * 2;
        store(o + d, dot(weights, load_bits(at) & seen, load(o + d)));
      }
    }
  }
};

}  // namespace
}  // namespace avx512_bf16

const Attention& attention_avx512_bf16() {
  using namespace avx512_bf16;
  static const Attention attention{.run = attention_of<PairProducts>, .scratch = attention_scratch_of<PairProducts>};
  return attention;
}

}  // namespace cmoe::kernels

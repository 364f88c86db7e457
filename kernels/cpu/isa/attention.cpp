// Attention in f32.
#include "kernels/cpu/isa/attention_tile.h"
#include "kernels/cpu/isa/gemm_tile.h"
#include "kernels/cpu/isa/kernels.h"

namespace cmoe::kernels::CMOE_ISA {
namespace {

// Vectors of keys or of head_dim that R rows handle at once: with few rows more of them hide the latency of the sums.
template <int R>
inline constexpr int kVecsAtOnce = kLanes == 16 && R <= 6 ? 4 : kTileVecs;

// One query tile of R rows against the transposed keys: s [R][kKeyBlock].
template <int R>
void score_rows(const float* q, const float* keys, int64_t head_dim, float* s) {
  constexpr int V = kVecsAtOnce<R>;
  for (int c = 0; c < kKeyBlock; c += V * kLanes) {
    Vec acc[R][V] = {};
    multiply<R, V>(PackedRows<R>{q}, FloatColumns<V>{keys + c, kKeyBlock}, head_dim, acc);
    write_tile(acc, s + c, kKeyBlock, V * kLanes, false);
  }
}

// V vectors of a row of values. With few rows to mix it asks for the row a block ahead.
template <int R, int V>
struct ValueColumns : FloatColumns<V> {
  CMOE_INLINE Vec get(int64_t k, int step, int v) const {
    const float* at = this->p + k * this->ld + v * kLanes;
    if (R <= 6) __builtin_prefetch(at + kKeyBlock * this->ld, 0, 2);
    return FloatColumns<V>::get(k, step, v);
  }
};

// Columns [c, c + V vectors) of mix_rows.
template <int R, int V>
CMOE_INLINE void mix_columns(const float* p, const float* value, int64_t ldv, int64_t keys, const float* alpha, int64_t width,
                             float* o) {
  Vec acc[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const Vec factor = broadcast(alpha[r]);
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) acc[r][v] = load(o + r * width + v * kLanes) * factor;
  }
  multiply<R, V>(FixedRows<kKeyBlock>{p}, ValueColumns<R, V>{{value, ldv}}, keys, acc);
  write_tile(acc, o, width, V * kLanes, false);
}

// o[r][:] = o[r][:] * alpha[r] + sum over keys [0, keys) of p[r][key] value[key][:].
template <int R>
void mix_rows(const float* p, const float* value, int64_t ldv, int64_t keys, const float* alpha, int64_t width, float* o) {
  constexpr int V = kVecsAtOnce<R>;
  int64_t c = 0;
  for (; c + V * kLanes <= width; c += V * kLanes) mix_columns<R, V>(p, value + c, ldv, keys, alpha, width, o + c);
  for (; c < width; c += kTileColumns) mix_columns<R, kTileVecs>(p, value + c, ldv, keys, alpha, width, o + c);
}

// keys [head_dim][kKeyBlock] = the transpose of key [count][head_dim], columns from count on zero. On the way asks for the next
// block of keys: decoding waits for memory otherwise. (Asking beyond the end is harmless.)
void transpose_keys(const float* key, int64_t count, int64_t head_dim, float* keys) {
  for (int64_t j = 0; j < kKeyBlock; j += kLanes) {
    const int64_t rows = count - j < 0 ? 0 : smaller(count - j, kLanes);
    for (int64_t d = 0; d < head_dim; d += 16) {
      for (int64_t i = 0; i < kLanes; ++i) __builtin_prefetch(key + (kKeyBlock + j + i) * head_dim + d, 0, 2);
      transpose_matrix(key + j * head_dim + d, head_dim, rows, smaller(head_dim - d, 16), keys + d * kKeyBlock + j, kKeyBlock,
                       kLanes);
    }
  }
}

using Score = void (*)(const float*, const float*, int64_t, float*);
using Mix = void (*)(const float*, const float*, int64_t, int64_t, const float*, int64_t, float*);
constexpr Score kScore[] = {nullptr,        score_rows<1>,  score_rows<2>, score_rows<3>,  score_rows<4>,
                            score_rows<5>,  score_rows<6>,
#ifdef __AVX512F__
                            score_rows<7>,  score_rows<8>,  score_rows<9>, score_rows<10>, score_rows<11>,
                            score_rows<12>, score_rows<13>, score_rows<14>
#endif
};
constexpr Mix kMix[] = {nullptr,     mix_rows<1>, mix_rows<2>, mix_rows<3>,  mix_rows<4>,  mix_rows<5>,  mix_rows<6>,
#ifdef __AVX512F__
                        mix_rows<7>, mix_rows<8>, mix_rows<9>, mix_rows<10>, mix_rows<11>, mix_rows<12>, mix_rows<13>,
                        mix_rows<14>
#endif
};

struct FloatProducts {
  static constexpr int64_t kRows = kTileRows, kStep = 1;
  static int64_t key_floats(int64_t head_dim) { return head_dim * kKeyBlock; }

  // [head_dim][n]
  static void pack_queries(const float* q, int64_t n, int64_t head_dim, float* packed) {
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t d = 0; d < head_dim; ++d) packed[d * n + r] = q[r * head_dim + d];
    }
  }
  static void pack_keys(const float* key, int64_t count, int64_t head_dim, float* keys) {
    transpose_keys(key, count, head_dim, keys);
  }
  // [count][width]
  static const float* pack_values(const float* value, int64_t count, int64_t head_dim, int64_t width, float* memory) {
    if (width == head_dim) return value;
    for (int64_t j = 0; j < count; ++j) {
      for (int64_t d = 0; d < width; ++d) memory[j * width + d] = d < head_dim ? value[j * head_dim + d] : 0.0f;
    }
    return memory;
  }
  static void score(int64_t rows, const float* q, const float* keys, int64_t head_dim, float* s) {
    kScore[rows](q, keys, head_dim, s);
  }
  static CMOE_INLINE Vec weight(Vec x) { return exp(x); }
  static void mix(int64_t rows, const float* p, const float* values, int64_t width, int64_t keys, const float* alpha,
                  float* o) {
    kMix[rows](p, values, width, keys, alpha, width, o);
  }
  static void mix_row(const float* p, const float* values, int64_t width, int64_t from, int64_t to, float* o) {
    for (int64_t j = from; j < to; ++j) {
      const Vec weight = broadcast(p[j]);
      for (int64_t d = 0; d < width; d += kLanes) store(o + d, fma(weight, load(values + j * width + d), load(o + d)));
    }
  }
};

}  // namespace

Attention attention() { return {.run = attention_of<FloatProducts>, .scratch = attention_scratch_of<FloatProducts>}; }

}  // namespace cmoe::kernels::CMOE_ISA

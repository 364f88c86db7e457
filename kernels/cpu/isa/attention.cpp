// Causal attention of a tile of queries to one key-value head, by online softmax over key blocks.
//
// Rows are (token, head of the group), token-major. For each block of kKeyBlock keys, at absolute positions:
//   s[r][j]  = (scale q[r]) . key[j]           accumulated over head_dim in order
//   m' = max(m, max_j s[r][j]),  p[r][j] = exp(s[r][j] - m')   over the keys the row sees
//   l = l exp(m - m') + sum_j p[r][j]
//   o[r][:] = o[r][:] exp(m - m') + sum_j p[r][j] value[j][:]  accumulated over keys in order
// and out = o / l at the end. A row stops at its own position to the key, so later keys cannot reach it, not even as NaN.
#include "kernels/cpu/isa/gemm_tile.h"
#include "kernels/cpu/isa/kernels.h"

namespace cmoe::kernels::CMOE_ISA {
namespace {

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

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

// The first `visible` (>= 1) of the block's scores become weights, the others 0. Returns the factor for what came before.
CMOE_INLINE float softmax_block(float* s, int64_t visible, float& m, float& l) {
  constexpr int kVecs = kKeyBlock / kLanes;
  for (int64_t j = visible; j < kKeyBlock; ++j) s[j] = -__builtin_inff();
  Vec v[kVecs];
  Vec top = broadcast(m);
  for (int i = 0; i < kVecs; ++i) {
    v[i] = load(s + i * kLanes);
    top = max(v[i], top);
  }
  const float highest = max_lanes(top);
  const Vec shift = broadcast(highest);
  for (int i = 0; i < kVecs; ++i) {
    v[i] = exp(v[i] - shift);
    store(s + i * kLanes, v[i]);
  }
  const float sum = sum_block<kKeyBlock>(v);
  float alpha = 1.0f;
  if (highest != m) {
    float lanes[kLanes];
    store(lanes, exp(broadcast(m - highest)));
    alpha = lanes[0];
  }
  m = highest;
  l = l * alpha + sum;
  return alpha;
}

}  // namespace

int64_t attention_scratch(int64_t rows, int64_t head_dim) {
  const int64_t width = round_up(head_dim, kPanel);
  return round_up(
      head_dim * kKeyBlock + kKeyBlock * width + kTileRows * kKeyBlock + rows * (head_dim + width + 2) + kTileRows + 2 * kLanes,
      16);
}

void attention(const AttentionTile& t, float* scratch) {
  const int64_t rows = t.tokens * t.group, width = round_up(t.head_dim, kPanel);
  float* keys = scratch;                                // [head_dim][kKeyBlock]
  float* padded_value = keys + t.head_dim * kKeyBlock;  // [kKeyBlock][width]
  float* s = padded_value + kKeyBlock * width;          // [kTileRows][kKeyBlock]
  float* o = s + kTileRows * kKeyBlock;                 // [rows][width]
  float* m = o + rows * width;
  float* l = m + rows;
  float* alpha = l + rows;       // [kTileRows]
  float* q = alpha + kTileRows;  // per tile [head_dim][its rows]

  for (int64_t r = 0; r < rows; ++r) {
    const int64_t tile_begin = r / kTileRows * kTileRows, tile_rows = smaller(rows - tile_begin, kTileRows);
    const float* row = t.q + r / t.group * t.q_stride + r % t.group * t.head_dim;
    for (int64_t d = 0; d < t.head_dim; ++d) q[tile_begin * t.head_dim + d * tile_rows + (r - tile_begin)] = row[d] * t.scale;
    m[r] = -__builtin_inff();
    l[r] = 0.0f;
    for (int64_t d = 0; d < width; ++d) o[r * width + d] = 0.0f;
  }

  const int64_t end = t.position + t.tokens;
  for (int64_t begin = 0; begin < end; begin += kKeyBlock) {
    const int64_t count = smaller(end - begin, kKeyBlock);
    const float* value = t.value + begin * t.head_dim;
    transpose_keys(t.key + begin * t.head_dim, count, t.head_dim, keys);
    if (width != t.head_dim) {
      for (int64_t j = 0; j < count; ++j) {
        for (int64_t d = 0; d < width; ++d) padded_value[j * width + d] = d < t.head_dim ? value[j * t.head_dim + d] : 0.0f;
      }
      value = padded_value;
    }
    for (int64_t r0 = 0; r0 < rows; r0 += kTileRows) {
      const int64_t tile = smaller(rows - r0, kTileRows);
      if (t.position + (r0 + tile - 1) / t.group < begin) continue;  // no row of the tile sees the block
      kScore[tile](q + r0 * t.head_dim, keys, t.head_dim, s);
      int64_t visible[kTileRows];
      for (int64_t r = 0; r < tile; ++r) {
        const int64_t seen = t.position + (r0 + r) / t.group + 1 - begin;
        visible[r] = seen <= 0 ? 0 : smaller(seen, count);
        alpha[r] = visible[r] == 0 ? 1.0f : softmax_block(s + r * kKeyBlock, visible[r], m[r0 + r], l[r0 + r]);
      }
      // All rows see the first visible[0] keys; on the diagonal later tokens see some more.
      float* tile_o = o + r0 * width;
      kMix[tile](s, value, width, visible[0], alpha, width, tile_o);
      for (int64_t r = 1; r < tile; ++r) {
        for (int64_t j = visible[0]; j < visible[r]; ++j) {
          const Vec weight = broadcast(s[r * kKeyBlock + j]);
          for (int64_t d = 0; d < width; d += kLanes) {
            float* p = tile_o + r * width + d;
            store(p, fma(weight, load(value + j * width + d), load(p)));
          }
        }
      }
    }
  }

  for (int64_t r = 0; r < rows; ++r) {
    float* out = t.out + r / t.group * t.out_stride + r % t.group * t.head_dim;
    for (int64_t d = 0; d < t.head_dim; ++d) out[d] = o[r * width + d] / l[r];
    if (t.log_sum) t.log_sum[r / t.group * t.log_sum_stride + r % t.group] = m[r] + __builtin_logf(l[r]);
  }
}

}  // namespace cmoe::kernels::CMOE_ISA

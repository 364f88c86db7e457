#pragma once

// Causal attention of a tile of queries to one key-value head, by online softmax over key blocks.
//
// Rows are (token, head of the group), token-major. For each block of kKeyBlock keys, at absolute positions:
//   s[r][j]  = (scale q[r]) . key[j]           accumulated over head_dim in order
//   m' = max(m, max_j s[r][j]),  p[r][j] = exp(s[r][j] - m')   over the keys the row sees
//   l = l exp(m - m') + sum_j p[r][j]
//   o[r][:] = o[r][:] exp(m - m') + sum_j p[r][j] value[j][:]  accumulated over keys in order
// and out = o / l at the end. A row stops at its own position to the key, so later keys cannot reach it, not even as NaN.
#include "kernels/cpu/isa/simd.h"

namespace cmoe::kernels::CMOE_ISA {

CMOE_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/// Parts of a row's sum l: each lane adds its own keys, they meet at the end.
inline constexpr int kSumLanes = 16;

// The first `visible` (>= 1) of the block's scores become weights, the others 0; m and l [kSumLanes] are the row's. Returns the
// factor for what came before. Most blocks of a long text hold no new maximum and need no look across lanes.
template <class Products>
CMOE_INLINE float softmax_block(float* s, int64_t visible, float& m, float* l) {
  constexpr int kVectors = kKeyBlock / kLanes, kSums = kSumLanes / kLanes;
  for (int64_t j = visible; j < kKeyBlock; ++j) s[j] = -__builtin_inff();
  Vec v[kVectors];
  const Vec before = broadcast(m);
  Vec top = before;
  for (int i = 0; i < kVectors; ++i) {
    v[i] = load(s + i * kLanes);
    top = max(v[i], top);
  }
  Vec factor = broadcast(1.0f);
  if (any_greater(top, before)) {
    m = max_lanes(top);
    factor = exp(before - m);
  }
  const Vec shift = broadcast(m);
  for (int i = 0; i < kVectors; ++i) {
    v[i] = Products::weight(v[i] - shift);
    store(s + i * kLanes, v[i]);
  }
  for (int count = kVectors / 2; count >= kSums; count /= 2) {
    for (int i = 0; i < count; ++i) v[i] += v[i + count];
  }
  for (int i = 0; i < kSums; ++i) store(l + i * kLanes, load(l + i * kLanes) * factor + v[i]);
  return factor[0];
}

/// Floats of scratch for `rows` rows of queries.
template <class Products>
int64_t attention_scratch_of(int64_t rows, int64_t head_dim) {
  const int64_t width = round_up(head_dim, kPanel), tile = Products::kRows;
  return round_up(round_up(Products::key_floats(head_dim), 16) + kKeyBlock * width + tile * (kKeyBlock + head_dim + 1) +
                      rows * (head_dim + width + 1 + kSumLanes) + 2 * kLanes + tile,
                  16);
}

/// The products are those of `Products`:
///   kRows  rows of queries a tile takes at most;  kStep  keys that mix() takes together
///   pack_queries(q [n][head_dim], n, head_dim, packed)      into at most n * head_dim floats and a vector
///   pack_keys(key, count, head_dim, keys)                   the block's, into key_floats(head_dim)
///   pack_values(value, count, head_dim, width, memory)      returns them, in `memory` of kKeyBlock * width floats or in place
///   score(rows, q, keys, head_dim, s)                       s [rows][kKeyBlock] of packed queries and keys
///   weight(x)                                               e^x of x <= 0; 1 at 0, NaN of NaN
///   mix(rows, p, values, width, keys, alpha, o)             o = alpha o + p values over the first `keys` (a multiple of kStep)
///   mix_row(p, values, width, from, to, o)                  the keys from .. to of one row, `from` a multiple of kStep
template <class Products>
void attention_of(const AttentionTile& t, float* scratch) {
  constexpr int64_t kRows = Products::kRows, kStep = Products::kStep;
  const int64_t rows = t.tokens * t.group, width = round_up(t.head_dim, kPanel);
  float* keys = scratch;
  float* values = keys + round_up(Products::key_floats(t.head_dim), 16);
  float* s = values + kKeyBlock * width;  // [kRows][kKeyBlock]
  float* o = s + kRows * kKeyBlock;       // [rows][width]
  float* m = o + rows * width;
  float* l = m + rows;                       // [rows][kSumLanes]
  float* alpha = l + rows * kSumLanes;       // [kRows]
  float* unpacked = alpha + kRows;           // [kRows][head_dim]
  float* q = unpacked + kRows * t.head_dim;  // a tile after the other

  for (int64_t r0 = 0; r0 < rows; r0 += kRows) {
    const int64_t tile = smaller(rows - r0, kRows);
    for (int64_t r = r0; r < r0 + tile; ++r) {
      const float* row = t.q + r / t.group * t.q_stride + r % t.group * t.head_dim;
      for (int64_t d = 0; d < t.head_dim; ++d) unpacked[(r - r0) * t.head_dim + d] = row[d] * t.scale;
      m[r] = -__builtin_inff();
      for (int i = 0; i < kSumLanes; ++i) l[r * kSumLanes + i] = 0.0f;
      for (int64_t d = 0; d < width; ++d) o[r * width + d] = 0.0f;
    }
    Products::pack_queries(unpacked, tile, t.head_dim, q + r0 * t.head_dim);
  }

  const int64_t end = t.position + t.tokens;
  for (int64_t begin = 0; begin < end; begin += kKeyBlock) {
    const int64_t count = smaller(end - begin, kKeyBlock);
    Products::pack_keys(t.key + begin * t.head_dim, count, t.head_dim, keys);
    const float* value = Products::pack_values(t.value + begin * t.head_dim, count, t.head_dim, width, values);
    for (int64_t r0 = 0; r0 < rows; r0 += kRows) {
      const int64_t tile = smaller(rows - r0, kRows);
      if (t.position + (r0 + tile - 1) / t.group < begin) continue;  // no row of the tile sees the block
      Products::score(tile, q + r0 * t.head_dim, keys, t.head_dim, s);
      int64_t visible[kRows];
      for (int64_t r = 0; r < tile; ++r) {
        const int64_t seen = t.position + (r0 + r) / t.group + 1 - begin;
        visible[r] = seen <= 0 ? 0 : smaller(seen, count);
        alpha[r] = visible[r] == 0
                       ? 1.0f
                       : softmax_block<Products>(s + r * kKeyBlock, visible[r], m[r0 + r], l + (r0 + r) * kSumLanes);
      }
      // All rows see the first visible[0] keys; on the diagonal later tokens see some more.
      const int64_t common = visible[0] / kStep * kStep;
      Products::mix(tile, s, value, width, common, alpha, o + r0 * width);
      for (int64_t r = 0; r < tile; ++r) {
        if (visible[r] > common) Products::mix_row(s + r * kKeyBlock, value, width, common, visible[r], o + (r0 + r) * width);
      }
    }
  }

  for (int64_t r = 0; r < rows; ++r) {
    Vec parts[kSumLanes / kLanes];
    for (int i = 0; i < kSumLanes / kLanes; ++i) parts[i] = load(l + r * kSumLanes + i * kLanes);
    const float sum = sum_block<kSumLanes>(parts);
    float* out = t.out + r / t.group * t.out_stride + r % t.group * t.head_dim;
    for (int64_t d = 0; d < t.head_dim; ++d) out[d] = o[r * width + d] / sum;
    if (t.log_sum) t.log_sum[r / t.group * t.log_sum_stride + r % t.group] = m[r] + __builtin_logf(sum);
  }
}

}  // namespace cmoe::kernels::CMOE_ISA

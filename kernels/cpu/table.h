#pragma once

#include <cstdint>

#include "kernels/cpu/f64.h"

// CPU kernels: single-threaded functions over plain pointers. Each is compiled once per instruction set; a Table holds one
// set's functions. Callers split work over threads and check shapes; nothing here allocates, throws or synchronises.
namespace cmoe::kernels {

/// Features (rows of W) that one packed panel holds.
inline constexpr int kPanel = 32;
/// Keys of one attention block: blocks start at multiples of it, whatever the query.
inline constexpr int kKeyBlock = 64;

/// y[i, j] (+)= sum over k of x[i, k] W[j, k], for one format of packed weights.
///
/// A weight matrix [n, k] lies as ceil(n / kPanel) panels, features beyond n zero. f32: panel[k][kPanel]. bf16:
/// panel[ceil(k / 2)][kPanel][2], so that a vector holds neighbours in k, and an odd k is padded with zero.
/// Each y[i, j] is one accumulator that adds its products in the order of k. Vector lanes run over j and tiles over i, so
/// neither the number of rows nor the split over threads reaches the bits.
struct Gemm {
  int tile_rows;  ///< rows of x that a tile takes at most

  /// Bytes of `rows` packed rows of x.
  int64_t (*packed_bytes)(int64_t rows, int64_t k);
  /// Packs rows (1 .. tile_rows) of x [rows, k], row stride ldx, for tile().
  void (*pack)(const float* x, int64_t ldx, int64_t rows, int64_t k, void* packed);
  /// y [rows, columns] (+)= packed rows times `columns` features of consecutive panels.
  void (*tile)(const void* packed, int64_t rows, const void* panels, int64_t k, float* y, int64_t ldy, int64_t columns,
               bool add);
};

/// Causal attention of consecutive tokens of one sequence to one key-value head.
struct AttentionTile {
  const float* q;  ///< [tokens][group][head_dim], token stride q_stride
  int64_t q_stride;
  int64_t tokens;
  int64_t position;  ///< of the first token; token t sees keys 0 .. position + t
  int64_t group;     ///< query heads that share the key-value head
  int64_t head_dim;
  const float* key;    ///< [position + tokens or more][head_dim]
  const float* value;  ///< the same shape
  float* out;          ///< laid out like q, token stride out_stride
  int64_t out_stride;
  float* log_sum;  ///< [tokens][group] log of the sum of exp(scale q . k), token stride log_sum_stride; or null
  int64_t log_sum_stride;
  float scale;
};

/// One way of making its products.
struct Attention {
  /// Online softmax over blocks of kKeyBlock keys at absolute positions: a row's result depends on its own query and keys
  /// alone, to the bit. `scratch` holds scratch() floats, 64-byte aligned.
  void (*run)(const AttentionTile& tile, float* scratch);
  int64_t (*scratch)(int64_t rows, int64_t head_dim);
};

struct Table {
  const char* name;
  Gemm f32, bf16;
  F64 f64;
  Attention attention;  ///< in f32

  /// Packs rows [0, n) (n <= kPanel) of W [n, k], row stride k, as one panel.
  void (*pack_panel_f32)(const float* w, int64_t n, int64_t k, float* panel);
  void (*pack_panel_bf16)(const uint16_t* w, int64_t n, int64_t k, uint16_t* panel);
  /// For dy W: inputs [0, k) (k <= kPanel) of a bf16 panel, [ceil(k / 2)][kPanel][2], as the panel of the transpose over its
  /// kPanel features, [kPanel / 2][kPanel][2], columns beyond k zero.
  void (*transpose_panel_bf16)(const uint16_t* panel, int64_t k, uint16_t* transposed);
  /// For c = a^T b: columns [0, n) of a [t, ...] with row stride lda. As a tile of f32.tile (n <= tile_rows) ...
  void (*pack_columns)(const float* a, int64_t lda, int64_t n, int64_t t, void* packed);
  /// ... and as an f32 panel (n <= kPanel).
  void (*pack_columns_panel)(const float* b, int64_t ldb, int64_t n, int64_t t, float* panel);

  /// The same of chosen rows, z[rows[0]], z[rows[1]], ..., for many columns at once: tiles [t][height] of `height` columns each
  /// (the last as high as columns remain), `stride` floats apart, at least t * height and a vector. `readable` floats may be
  /// read from z on in each row.
  void (*pack_listed_tiles)(const float* z, int64_t ldz, int64_t readable, const int32_t* rows, int64_t t, int64_t columns,
                            int64_t height, int64_t stride, float* packed);
  /// ... and as consecutive panels [t][kPanel].
  void (*pack_listed_panels)(const float* z, int64_t ldz, const int32_t* rows, int64_t t, int64_t columns, float* panels);
  /// sum[c] += x[r, c] and square[c] += x[r, c]^2, in f64, rows in order.
  void (*add_column_moments)(const float* x, int64_t ldx, int64_t rows, int64_t columns, double* sum, double* square);

  // Magnitudes are the bits of |x| as integers, ordered alike; infinity's are 0x7f800000, a NaN's above.
  /// maxima[s] = the largest magnitude of x[s], x[s + slices], ...; 0 where n <= s.
  void (*slice_maxima)(const float* x, int64_t n, int64_t slices, int32_t* maxima);
  /// The indices, ascending, of magnitudes >= least; returns how many. `index` has room for n.
  int64_t (*list_magnitudes)(const float* x, int64_t n, int32_t least, int32_t* index);

  /// y = x * (1 / sqrt(mean(x^2) + epsilon)) * weight; one row of n.
  void (*rms_norm)(const float* x, const float* weight, int64_t n, float epsilon, float* y);
  /// Rotates the pairs (i, i + half) of one head in place.
  void (*rope)(float* x, const float* cos, const float* sin, int64_t half);
  /// h = g / (1 + exp(-g)) * u.
  void (*swiglu)(const float* gate, const float* up, int64_t n, float* h);
  void (*add)(const float* x, int64_t n, float* y);
  void (*exp)(const float* x, int64_t n, float* y);
  void (*widen_bf16)(const uint16_t* x, int64_t n, float* y);
  /// Nearest, ties to even; NaN stays NaN.
  void (*narrow_bf16)(const float* x, int64_t n, uint16_t* y);
  /// max(x) and the sum of exp(x - max), in an order that n alone decides.
  void (*sum_exp)(const float* x, int64_t n, float* max, double* sum);

  // Training; the order of every sum is decided by n alone.
  float (*dot)(const float* a, const float* b, int64_t n);
  /// y += factor x.
  void (*add_scaled)(const float* x, float factor, int64_t n, float* y);
  /// dx += the gradient of rms_norm() with respect to x, of dy; one row of n.
  void (*rms_norm_backward)(const float* x, const float* weight, const float* dy, int64_t n, float epsilon, float* dx);
  /// dgate and dup of swiglu(); each may be any of the inputs.
  void (*swiglu_backward)(const float* gate, const float* up, const float* dh, int64_t n, float* dgate, float* dup);
  /// y = factor exp(scale x - shift).
  void (*exp_scaled)(const float* x, int64_t n, float scale, float shift, float factor, float* y);
  /// Softmax and its gradient over one panel of keys, for rows (token, head of the group): s [tokens * group][kPanel] becomes
  /// p = exp(scale s - log_sum[row]) and dp, laid out alike, becomes ds = p (dp - mean[row]) scale; mean = sum(p dp) over all
  /// keys. Token t sees the panel's first seen + t keys (maybe none, maybe all); of the others p and ds are 0.
  void (*softmax_backward)(float* s, float* dp, int64_t tokens, int64_t group, int64_t seen, const float* log_sum,
                           const float* mean, float scale);

  // Products with a side n of a few elements; w [n, k] as it is. Each sum's order is decided by its length alone.
  /// y [rows, n] = x [rows, k] w^T.
  void (*narrow_dots)(const float* x, int64_t ldx, int64_t rows, const float* w, int64_t n, int64_t k, float* y, int64_t ldy);
  /// y [rows, k] (+)= x [rows, n] w; w has row stride ldw.
  void (*narrow_sums)(const float* x, int64_t ldx, int64_t rows, const float* w, int64_t ldw, int64_t n, int64_t k, float* y,
                      int64_t ldy, bool add);
  /// c [n, columns] (+)= a^T b; a [t, n], b [t, columns]; in order of t, from what c holds on.
  void (*narrow_outer)(const float* a, int64_t lda, int64_t n, const float* b, int64_t ldb, int64_t columns, int64_t t,
                       float* c, int64_t ldc, bool add);
  /// y[r, i] (+)= x[r, i] keep where bits 16 (i % 4) and up of mix(state + (counter[r] + i / 4) golden) are >= threshold, else
  /// 0; i < n; mix and golden are SplitMix64's.
  void (*dropout)(const float* x, int64_t ldx, int64_t rows, int64_t n, uint64_t state, const uint64_t* counter,
                  uint32_t threshold, float keep, float* y, int64_t ldy, bool add);
};

const Table& table_generic();
#ifdef CMOE_X86
const Table& table_avx2();
const Table& table_avx512();
/// bf16 products by vdpbf16ps; x is rounded to bf16.
const Gemm& gemm_avx512_bf16();
/// Attention that rounds queries, keys, values and weights to bf16; sums and softmax are f32.
const Attention& attention_avx512_bf16();
#endif

}  // namespace cmoe::kernels

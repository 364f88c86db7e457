// Gradients of causal attention. With s = scale q k^T, p = softmax(s), dp = dout v^T, mean_i = dout_i . out_i:
//   ds = p (dp - mean) scale,   dq = ds k,   dk = ds^T q,   dv = p^T dout.
// Two passes over blocks, so that every result has one writer and one order of summation: the first goes along the keys of
// a block of queries (softmax statistics, dq), the second along the queries of a block of keys (dk, dv).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "base/error.h"
#include "base/parallel.h"

namespace cmoe::cpu {
namespace {

using kernels::kPanel;

constexpr int64_t kKeys = 128;  // keys of a block
constexpr int64_t kRows = 128;  // (token, head) rows of a block of queries

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

struct Piece {
  const AttentionSpan* span;
  int64_t kv_head, begin;  // first token of the block of queries, or of keys
};

// Small products of one thread over row-major scratch.
class Products {
 public:
  // No product has more than `most` rows, columns or terms.
  Products(const kernels::Table& table, int64_t most)
      : table_(table),
        panel_(static_cast<size_t>(most * round_up(most, kPanel))),
        packed_(static_cast<size_t>((most + 64) * table.f32.tile_rows)) {}

  // y [rows, n] = x [rows, k] w [n, k]^T; w contiguous.
  void rows_by_rows(const float* x, int64_t rows, int64_t k, const float* w, int64_t n, float* y, int64_t ldy) {
    for (int64_t j = 0; j < n; j += kPanel)
      table_.pack_panel_f32(w + j * k, std::min<int64_t>(kPanel, n - j), k, panel_.data() + j * k);
    tiles(rows, k, n, y, ldy, false,
          [&](int64_t row, int64_t count) { table_.f32.pack(x + row * k, k, count, k, packed_.data()); });
  }
  // y [rows, n] += x [rows, k] w [k, n]; x has row stride ldx, w is contiguous.
  void rows_by_columns(const float* x, int64_t ldx, int64_t rows, int64_t k, const float* w, int64_t n, float* y) {
    pack_columns(w, k, n);
    tiles(rows, k, n, y, n, true,
          [&](int64_t row, int64_t count) { table_.f32.pack(x + row * ldx, ldx, count, k, packed_.data()); });
  }
  // y [columns, n] += x[:, columns]^T w; x [k, columns] with row stride ldx, w [k, n] contiguous.
  void columns_by_columns(const float* x, int64_t ldx, int64_t columns, int64_t k, const float* w, int64_t n, float* y) {
    pack_columns(w, k, n);
    tiles(columns, k, n, y, n, true,
          [&](int64_t c, int64_t count) { table_.pack_columns(x + c, ldx, count, k, packed_.data()); });
  }

 private:
  void pack_columns(const float* w, int64_t k, int64_t n) {
    for (int64_t j = 0; j < n; j += kPanel)
      table_.pack_columns_panel(w + j, n, std::min<int64_t>(kPanel, n - j), k, panel_.data() + j * k);
  }
  template <class Pack>
  void tiles(int64_t rows, int64_t k, int64_t n, float* y, int64_t ldy, bool add, const Pack& pack) {
    for (int64_t row = 0; row < rows; row += table_.f32.tile_rows) {
      const int64_t count = std::min<int64_t>(table_.f32.tile_rows, rows - row);
      pack(row, count);
      table_.f32.tile(packed_.data(), count, panel_.data(), k, y + row * ldy, ldy, n, add);
    }
  }

  const kernels::Table& table_;
  std::vector<float> panel_, packed_;
};

// What both passes read. Rows of a block of queries are (token, head of the group), token-major.
struct Inputs {
  const Tensor &q, &k, &v, &out, &dout;
  int64_t head_dim, group;
  float scale;

  const float* head_row(const Tensor& x, int64_t row, int64_t head) const { return x.row<float>(row) + head * head_dim; }

  // Rows of a group's heads for `tokens` tokens, or of one head where `heads` is 1: contiguous [tokens * heads, head_dim].
  void copy(const Tensor& x, int64_t row, int64_t tokens, int64_t head, int64_t heads, float* to) const {
    for (int64_t t = 0; t < tokens; ++t) {
      std::memcpy(to + t * heads * head_dim, head_row(x, row + t, head), static_cast<size_t>(heads * head_dim) * sizeof(float));
    }
  }
};

// Per row and head of the batch.
struct Statistics {
  std::vector<float> max, factor, mean;  // p = exp(s - max) factor; mean of dp under p
};

}  // namespace

void CpuBackend::attention_backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& dout,
                                    std::span<const AttentionSpan> spans, int64_t head_dim, Tensor& dq, Tensor& dk,
                                    Tensor& dv) const {
  const char* where = "attention_backward";
  check_matrix(where, "q", q, -1, -1);
  check_matrix(where, "k", k, q.dim(0), -1);
  for (const auto& [name, tensor] : {std::pair{"out", &out}, {"dout", &dout}, {"dq", &std::as_const(dq)}})
    check_matrix(where, name, *tensor, q.dim(0), q.dim(1));
  for (const auto& [name, tensor] : {std::pair{"v", &v}, {"dk", &std::as_const(dk)}, {"dv", &std::as_const(dv)}})
    check_matrix(where, name, *tensor, q.dim(0), k.dim(1));
  CMOE_CHECK(head_dim > 0 && q.dim(1) % head_dim == 0 && k.dim(1) % head_dim == 0 && k.dim(1) > 0,
             "{}: q has {} columns and k {}, expected multiples of head_dim {}", where, q.dim(1), k.dim(1), head_dim);
  const int64_t heads = q.dim(1) / head_dim, kv_heads = k.dim(1) / head_dim;
  CMOE_CHECK(heads % kv_heads == 0, "{}: {} query heads, expected a multiple of the {} key-value heads", where, heads,
             kv_heads);
  for (const AttentionSpan& span : spans) {
    CMOE_CHECK(span.past == 0, "{}: a span with {} tokens before it, expected whole sequences", where, span.past);
    CMOE_CHECK(span.rows >= 0 && span.row_begin >= 0 && span.row_begin + span.rows <= q.dim(0),
               "{}: a span of rows {} .. {}, expected them within the batch's {}", where, span.row_begin,
               span.row_begin + span.rows, q.dim(0));
  }
  for (Tensor* gradient : {&dq, &dk, &dv}) {
    if (gradient->bytes() > 0) std::memset(gradient->raw(), 0, static_cast<size_t>(gradient->bytes()));
  }

  const Inputs in{
      q, k, v, out, dout, head_dim, heads / kv_heads, static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)))};
  const int64_t group = in.group, block_tokens = std::max<int64_t>(1, kRows / group), most_rows = block_tokens * group;
  const auto size = static_cast<size_t>(q.dim(0) * heads);
  Statistics stats{std::vector<float>(size), std::vector<float>(size), std::vector<float>(size)};
  const auto pieces_of = [&](int64_t step) {
    std::vector<Piece> pieces;
    for (const AttentionSpan& span : spans) {
      for (int64_t begin = 0; begin < span.rows; begin += step) {
        for (int64_t head = 0; head < kv_heads; ++head) pieces.push_back({&span, head, begin});
      }
    }
    return pieces;
  };

  // Along the keys: softmax statistics of each query, then dq.
  const std::vector<Piece> query_blocks = pieces_of(block_tokens);
  parallel_for(static_cast<int64_t>(query_blocks.size()), 1, [&](int64_t piece_begin, int64_t piece_end) {
    Products products(table_, std::max({kKeys, most_rows, head_dim}));
    const auto floats = [](int64_t n) { return std::vector<float>(static_cast<size_t>(n)); };
    std::vector<float> queries = floats(most_rows * head_dim), douts = queries, dqs = queries;
    std::vector<float> keys = floats(kKeys * head_dim), dp = floats(most_rows * kKeys), s;
    for (int64_t i = piece_begin; i < piece_end; ++i) {
      const auto& [span, kv_head, token] = query_blocks[static_cast<size_t>(i)];
      const int64_t tokens = std::min(block_tokens, span->rows - token), rows = tokens * group, row = span->row_begin + token;
      const int64_t seen = token + tokens, lds = round_up(seen, kKeys);
      in.copy(q, row, tokens, kv_head * group, group, queries.data());
      in.copy(dout, row, tokens, kv_head * group, group, douts.data());
      s.resize(static_cast<size_t>(rows * lds));
      for (int64_t key = 0; key < seen; key += kKeys) {
        const int64_t count = std::min(kKeys, seen - key);
        in.copy(k, span->row_begin + key, count, kv_head, 1, keys.data());
        products.rows_by_rows(queries.data(), rows, head_dim, keys.data(), count, s.data() + key, lds);
      }
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t visible = token + r / group + 1;
        float* line = s.data() + r * lds;
        const auto at = static_cast<size_t>((row + r / group) * heads + kv_head * group + r % group);
        float max;
        double sum;
        for (int64_t j = 0; j < visible; ++j) line[j] *= in.scale;
        table_.sum_exp(line, visible, &max, &sum);
        stats.max[at] = max;
        stats.factor[at] = static_cast<float>(1.0 / sum);
        stats.mean[at] = table_.dot(in.head_row(dout, row + r / group, kv_head * group + r % group),
                                    in.head_row(out, row + r / group, kv_head * group + r % group), head_dim);
        table_.exp_scaled(line, visible, 1.0f, max, stats.factor[at], line);
        std::fill(line + visible, line + lds, 0.0f);
      }
      std::fill(dqs.begin(), dqs.end(), 0.0f);
      for (int64_t key = 0; key < seen; key += kKeys) {
        const int64_t count = std::min(kKeys, seen - key);
        in.copy(v, span->row_begin + key, count, kv_head, 1, keys.data());
        products.rows_by_rows(douts.data(), rows, head_dim, keys.data(), count, dp.data(), kKeys);
        for (int64_t r = 0; r < rows; ++r) {
          const auto at = static_cast<size_t>((row + r / group) * heads + kv_head * group + r % group);
          table_.softmax_backward(s.data() + r * lds + key, dp.data() + r * kKeys, count, stats.mean[at], in.scale,
                                  dp.data() + r * kKeys);
        }
        in.copy(k, span->row_begin + key, count, kv_head, 1, keys.data());
        products.rows_by_columns(dp.data(), kKeys, rows, count, keys.data(), head_dim, dqs.data());
      }
      for (int64_t t = 0; t < tokens; ++t) {
        std::memcpy(dq.row<float>(row + t) + kv_head * group * head_dim, dqs.data() + t * group * head_dim,
                    static_cast<size_t>(group * head_dim) * sizeof(float));
      }
    }
  });

  // Along the queries: dk and dv of each block of keys.
  const std::vector<Piece> key_blocks = pieces_of(kKeys);
  parallel_for(static_cast<int64_t>(key_blocks.size()), 1, [&](int64_t piece_begin, int64_t piece_end) {
    Products products(table_, std::max({kKeys, most_rows, head_dim}));
    const auto floats = [](int64_t n) { return std::vector<float>(static_cast<size_t>(n)); };
    std::vector<float> queries = floats(most_rows * head_dim), douts = queries;
    std::vector<float> keys = floats(kKeys * head_dim), values = keys, dks = keys, dvs = keys;
    std::vector<float> p = floats(most_rows * kKeys), dp = p;
    for (int64_t i = piece_begin; i < piece_end; ++i) {
      const auto& [span, kv_head, key] = key_blocks[static_cast<size_t>(i)];
      const int64_t count = std::min(kKeys, span->rows - key);
      in.copy(k, span->row_begin + key, count, kv_head, 1, keys.data());
      in.copy(v, span->row_begin + key, count, kv_head, 1, values.data());
      std::fill(dks.begin(), dks.end(), 0.0f);
      std::fill(dvs.begin(), dvs.end(), 0.0f);
      for (int64_t token = key / block_tokens * block_tokens; token < span->rows; token += block_tokens) {
        const int64_t tokens = std::min(block_tokens, span->rows - token), rows = tokens * group, row = span->row_begin + token;
        in.copy(q, row, tokens, kv_head * group, group, queries.data());
        in.copy(dout, row, tokens, kv_head * group, group, douts.data());
        products.rows_by_rows(queries.data(), rows, head_dim, keys.data(), count, p.data(), kKeys);
        products.rows_by_rows(douts.data(), rows, head_dim, values.data(), count, dp.data(), kKeys);
        for (int64_t r = 0; r < rows; ++r) {
          const auto at = static_cast<size_t>((row + r / group) * heads + kv_head * group + r % group);
          const int64_t visible = std::clamp<int64_t>(token + r / group + 1 - key, 0, count);
          float *weights = p.data() + r * kKeys, *gradients = dp.data() + r * kKeys;
          table_.exp_scaled(weights, visible, in.scale, stats.max[at], stats.factor[at], weights);
          std::fill(weights + visible, weights + count, 0.0f);
          table_.softmax_backward(weights, gradients, count, stats.mean[at], in.scale, gradients);
        }
        products.columns_by_columns(p.data(), kKeys, count, rows, douts.data(), head_dim, dvs.data());
        products.columns_by_columns(dp.data(), kKeys, count, rows, queries.data(), head_dim, dks.data());
      }
      for (int64_t j = 0; j < count; ++j) {
        const auto bytes = static_cast<size_t>(head_dim) * sizeof(float);
        std::memcpy(dk.row<float>(span->row_begin + key + j) + kv_head * head_dim, dks.data() + j * head_dim, bytes);
        std::memcpy(dv.row<float>(span->row_begin + key + j) + kv_head * head_dim, dvs.data() + j * head_dim, bytes);
      }
    }
  });
}

}  // namespace cmoe::cpu

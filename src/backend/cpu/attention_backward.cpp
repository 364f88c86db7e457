// Gradients of causal attention. With s = scale q k^T, p = softmax(s), dp = dout v^T, mean_i = dout_i . out_i:
//   ds = p (dp - mean) scale,   dq = ds k,   dk = ds^T q,   dv = p^T dout.
// Blocks of queries go along their keys: softmax, dq, and what they add to dk and dv. They are dealt to a few lanes, each with
// sums of its own for dk and dv, added in the order of the lanes: no sum depends on who computed it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "base/error.h"
#include "base/parallel.h"

namespace cmoe::cpu {
namespace {

using kernels::kPanel;

constexpr int64_t kKeys = 128;  // keys of a block
constexpr int64_t kRows = 128;  // (token, head) rows of a block of queries
constexpr int64_t kLanes = 4;   // of a key-value head in a sequence

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Every kLanes-th block of queries of one key-value head in one sequence.
struct Lane {
  const AttentionSpan* span;
  int64_t kv_head, number;
  std::vector<float> dk, dv;  // [rows of the span, head_dim]
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

// The gradients of one lane: dq whole, dk and dv into the lane's sums.
class LaneBackward {
 public:
  LaneBackward(const kernels::Table& table, const Inputs& in)
      : table_(table),
        in_(in),
        tokens_(std::max<int64_t>(1, kRows / in.group)),
        products_(table, std::max({kKeys, tokens_ * in.group, in.head_dim})),
        queries_(floats(tokens_ * in.group * in.head_dim)),
        douts_(queries_),
        dqs_(queries_),
        keys_(floats(kKeys * in.head_dim)),
        values_(keys_),
        dp_(floats(tokens_ * in.group * kKeys)) {}

  void run(Lane& lane, Tensor& dq) {
    lane.dk.assign(static_cast<size_t>(lane.span->rows * in_.head_dim), 0.0f);
    lane.dv = lane.dk;
    for (int64_t token = lane.number * tokens_; token < lane.span->rows; token += kLanes * tokens_) block(lane, token, dq);
  }

 private:
  static std::vector<float> floats(int64_t n) { return std::vector<float>(static_cast<size_t>(n)); }

  void block(Lane& lane, int64_t token, Tensor& dq) {
    const int64_t group = in_.group, head_dim = in_.head_dim, first_head = lane.kv_head * group;
    const int64_t tokens = std::min(tokens_, lane.span->rows - token), rows = tokens * group;
    const int64_t row = lane.span->row_begin + token, seen = token + tokens, lds = (seen + kKeys - 1) / kKeys * kKeys;
    in_.copy(in_.q, row, tokens, first_head, group, queries_.data());
    in_.copy(in_.dout, row, tokens, first_head, group, douts_.data());
    p_.resize(static_cast<size_t>(rows * lds));
    for (int64_t key = 0; key < seen; key += kKeys) {
      const int64_t count = std::min(kKeys, seen - key);
      in_.copy(in_.k, lane.span->row_begin + key, count, lane.kv_head, 1, keys_.data());
      products_.rows_by_rows(queries_.data(), rows, head_dim, keys_.data(), count, p_.data() + key, lds);
    }
    mean_.resize(static_cast<size_t>(rows));
    for (int64_t r = 0; r < rows; ++r) {
      float* line = p_.data() + r * lds;
      const int64_t visible = token + r / group + 1, head = first_head + r % group;
      softmax(line, visible);
      std::fill(line + visible, line + lds, 0.0f);
      mean_[static_cast<size_t>(r)] =
          table_.dot(in_.head_row(in_.dout, row + r / group, head), in_.head_row(in_.out, row + r / group, head), head_dim);
    }
    std::fill(dqs_.begin(), dqs_.end(), 0.0f);
    for (int64_t key = 0; key < seen; key += kKeys) {
      const int64_t count = std::min(kKeys, seen - key);
      in_.copy(in_.k, lane.span->row_begin + key, count, lane.kv_head, 1, keys_.data());
      in_.copy(in_.v, lane.span->row_begin + key, count, lane.kv_head, 1, values_.data());
      products_.columns_by_columns(p_.data() + key, lds, count, rows, douts_.data(), head_dim, lane.dv.data() + key * head_dim);
      products_.rows_by_rows(douts_.data(), rows, head_dim, values_.data(), count, dp_.data(), kKeys);
      for (int64_t r = 0; r < rows; ++r) {
        float* ds = dp_.data() + r * kKeys;
        table_.softmax_backward(p_.data() + r * lds + key, ds, count, mean_[static_cast<size_t>(r)], in_.scale, ds);
      }
      products_.rows_by_columns(dp_.data(), kKeys, rows, count, keys_.data(), head_dim, dqs_.data());
      products_.columns_by_columns(dp_.data(), kKeys, count, rows, queries_.data(), head_dim, lane.dk.data() + key * head_dim);
    }
    for (int64_t t = 0; t < tokens; ++t) {
      std::memcpy(dq.row<float>(row + t) + first_head * head_dim, dqs_.data() + t * group * head_dim,
                  static_cast<size_t>(group * head_dim) * sizeof(float));
    }
  }

  // In place, of scale times the line.
  void softmax(float* line, int64_t n) const {
    float max;
    double sum;
    for (int64_t j = 0; j < n; ++j) line[j] *= in_.scale;
    table_.sum_exp(line, n, &max, &sum);
    table_.exp_scaled(line, n, 1.0f, max, static_cast<float>(1.0 / sum), line);
  }

  const kernels::Table& table_;
  const Inputs& in_;
  int64_t tokens_;  // of a block
  Products products_;
  std::vector<float> queries_, douts_, dqs_, keys_, values_, dp_, p_, mean_;
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
  std::vector<Lane> lanes;
  for (const AttentionSpan& span : spans) {
    for (int64_t head = 0; head < kv_heads; ++head) {
      for (int64_t number = 0; number < kLanes; ++number) lanes.push_back({&span, head, number, {}, {}});
    }
  }
  parallel_for(static_cast<int64_t>(lanes.size()), 1, [&](int64_t begin, int64_t end) {
    LaneBackward backward(table_, in);
    for (int64_t i = begin; i < end; ++i) backward.run(lanes[static_cast<size_t>(i)], dq);
  });
  parallel_for(static_cast<int64_t>(lanes.size()) / kLanes, 1, [&](int64_t begin, int64_t end) {
    for (const Lane& lane :
         std::span(lanes).subspan(static_cast<size_t>(begin * kLanes), static_cast<size_t>((end - begin) * kLanes))) {
      for (int64_t j = 0; j < lane.span->rows; ++j) {
        const auto at = static_cast<size_t>(j * head_dim);
        table_.add(&lane.dk[at], head_dim, dk.row<float>(lane.span->row_begin + j) + lane.kv_head * head_dim);
        table_.add(&lane.dv[at], head_dim, dv.row<float>(lane.span->row_begin + j) + lane.kv_head * head_dim);
      }
    }
  });
}

}  // namespace cmoe::cpu

// Gradients of causal attention. With s = scale q k^T, p = exp(s - log_sum), dp = dout v^T, mean_i = dout_i . out_i:
//   ds = p (dp - mean) scale,   dq = ds k,   dk = ds^T q,   dv = p^T dout.
// Blocks of queries go along their keys, a few panels of keys at a time. p and ds lie as panels [row][key], so that they are
// at once what dk^T = q^T ds and dv^T = dout^T p multiply with. The blocks are dealt to a few lanes, each with sums of its own
// for dk and dv, added in the order of the lanes: no sum depends on who computed it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/packed_weight.h"
#include "base/error.h"
#include "base/parallel.h"

namespace cmoe::cpu {
namespace {

using kernels::kPanel;

constexpr int64_t kKeys = 4 * kPanel;  // keys of a block
constexpr int64_t kRows = 126;         // (token, head) rows of a block of queries: whole tiles of every instruction set
constexpr int64_t kLanes = 4;          // of a key-value head in a sequence

using Floats = std::vector<float>;
Floats floats(int64_t n) { return Floats(static_cast<size_t>(n)); }

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Row tiles of one operand, [k][rows of the tile] each.
class Tiles {
 public:
  Tiles(const kernels::Gemm& gemm, int64_t most_rows, int64_t most_k)
      : gemm_(gemm),
        stride_(gemm.tile_rows * most_k + kPanel),
        memory_(floats(RowTiles(most_rows, gemm.tile_rows).count * stride_)) {}

  /// pack(row, count, to) for each tile of `rows` rows.
  template <class Pack>
  void pack(int64_t rows, const Pack& pack) {
    tiles_ = RowTiles(rows, gemm_.tile_rows);
    for (int64_t i = 0; i < tiles_.count; ++i) pack(i * tiles_.height, tiles_.rows_of(i), memory_.data() + i * stride_);
  }
  /// y [rows, columns] (+)= the rows times a panel over k.
  void multiply(const float* panel, int64_t k, float* y, int64_t ldy, int64_t columns, bool add) const {
    for (int64_t i = 0; i < tiles_.count; ++i)
      gemm_.tile(memory_.data() + i * stride_, tiles_.rows_of(i), panel, k, y + i * tiles_.height * ldy, ldy, columns, add);
  }

 private:
  const kernels::Gemm& gemm_;
  int64_t stride_;
  Floats memory_;
  RowTiles tiles_{0, 1};
};

// What all pieces of work read. Rows of a block of queries are (token, head of the group), token-major.
struct Inputs {
  const Tensor &q, &k, &v, &out, &log_sum, &dout;
  int64_t head_dim, group;
  float scale;

  const float* head_row(const Tensor& x, int64_t row, int64_t head) const { return x.row<float>(row) + head * head_dim; }

  // `heads` heads of `tokens` tokens, contiguous: [tokens * heads, head_dim].
  void copy(const Tensor& x, int64_t row, int64_t tokens, int64_t head, int64_t heads, float* to) const {
    for (int64_t t = 0; t < tokens; ++t) {
      std::memcpy(to + t * heads * head_dim, head_row(x, row + t, head), static_cast<size_t>(heads * head_dim) * sizeof(float));
    }
  }
};

// A key-value head of a sequence as the products read it, keys padded with zeros to whole panels.
struct Head {
  const AttentionSpan* span;
  int64_t kv_head;
  Floats keys, values;  // [panels of keys][head_dim][kPanel]
  Floats key_columns;   // [panels of head_dim][padded keys][kPanel]

  int64_t padded() const { return round_up(span->rows, kPanel); }

  void pack(const kernels::Table& table, const Inputs& in) {
    const int64_t head_dim = in.head_dim, rows = span->rows;
    keys = values = floats(padded() * head_dim);
    Floats copied = floats(kPanel * head_dim);
    for (int64_t key = 0; key < rows; key += kPanel) {
      const int64_t count = std::min<int64_t>(kPanel, rows - key);
      for (const auto& [from, to] : {std::pair{&in.k, &keys}, {&in.v, &values}}) {
        in.copy(*from, span->row_begin + key, count, kv_head, 1, copied.data());
        table.pack_panel_f32(copied.data(), count, head_dim, to->data() + key * head_dim);
      }
    }
    key_columns = floats(padded() * round_up(head_dim, kPanel));
    for (int64_t c = 0; c < head_dim && rows > 0; c += kPanel) {
      table.pack_columns_panel(in.head_row(in.k, span->row_begin, kv_head) + c, in.k.dim(1),
                               std::min<int64_t>(kPanel, head_dim - c), rows, key_columns.data() + c * padded());
    }
  }
};

// Every kLanes-th block of queries of one head.
struct Lane {
  const Head* head;
  int64_t number;
  Floats dk, dv;  // transposed: [head_dim, stride()]

  // Not a multiple of 4 KiB, which would send the lines of a tile to the same place of the cache.
  int64_t stride() const { return head->padded() + 16; }
};

// The gradients of one lane: dq whole, dk and dv into the lane's sums.
class LaneBackward {
 public:
  LaneBackward(const kernels::Table& table, const Inputs& in)
      : table_(table),
        in_(in),
        tokens_(std::max<int64_t>(1, kRows / in.group)),
        queries_(floats(most_rows() * in.head_dim)),
        douts_(queries_),
        dqs_(queries_),
        log_sum_(floats(most_rows())),
        mean_(log_sum_),
        p_(floats(most_rows() * kKeys)),
        ds_(p_),
        query_rows_(table.f32, most_rows(), in.head_dim),
        dout_rows_(query_rows_),
        query_columns_(table.f32, in.head_dim, most_rows()),
        dout_columns_(query_columns_),
        ds_rows_(table.f32, most_rows(), kKeys) {}

  void run(Lane& lane, Tensor& dq) {
    lane.dk = lane.dv = floats(lane.stride() * in_.head_dim);
    for (int64_t token = lane.number * tokens_; token < lane.head->span->rows; token += kLanes * tokens_)
      block(lane, token, dq);
  }

 private:
  int64_t most_rows() const { return tokens_ * in_.group; }

  void block(Lane& lane, int64_t token, Tensor& dq) {
    const Head& head = *lane.head;
    const int64_t group = in_.group, head_dim = in_.head_dim, first_head = head.kv_head * group;
    const int64_t tokens = std::min(tokens_, head.span->rows - token), rows = tokens * group;
    const int64_t row = head.span->row_begin + token, seen = token + tokens;
    read_queries(row, tokens, first_head);
    std::fill(dqs_.begin(), dqs_.end(), 0.0f);
    for (int64_t first = 0; first < seen; first += kKeys) {
      const int64_t count = std::min(kKeys, round_up(seen - first, kPanel));
      for (int64_t at = 0; at < count; at += kPanel) {
        const int64_t key = first + at;
        float *p = p_.data() + at * rows, *ds = ds_.data() + at * rows;  // [rows][kPanel]
        query_rows_.multiply(head.keys.data() + key * head_dim, head_dim, p, kPanel, kPanel, false);
        dout_rows_.multiply(head.values.data() + key * head_dim, head_dim, ds, kPanel, kPanel, false);
        table_.softmax_backward(p, ds, tokens, group, token + 1 - key, log_sum_.data(), mean_.data(), in_.scale);
        dout_columns_.multiply(p, rows, lane.dv.data() + key, lane.stride(), kPanel, true);
        query_columns_.multiply(ds, rows, lane.dk.data() + key, lane.stride(), kPanel, true);
      }
      ds_rows_.pack(rows, [&](int64_t r, int64_t height, float* to) {
        for (int64_t at = 0; at < count; at += kPanel)
          table_.f32.pack(ds_.data() + at * rows + r * kPanel, kPanel, height, kPanel, to + at * height);
      });
      for (int64_t c = 0; c < head_dim; c += kPanel) {
        ds_rows_.multiply(head.key_columns.data() + c * head.padded() + first * kPanel, count, dqs_.data() + c, head_dim,
                          std::min<int64_t>(kPanel, head_dim - c), true);
      }
    }
    for (int64_t t = 0; t < tokens; ++t) {
      std::memcpy(dq.row<float>(row + t) + first_head * head_dim, dqs_.data() + t * group * head_dim,
                  static_cast<size_t>(group * head_dim) * sizeof(float));
    }
  }

  void read_queries(int64_t row, int64_t tokens, int64_t first_head) {
    const int64_t group = in_.group, head_dim = in_.head_dim, rows = tokens * group;
    for (const auto& [from, to, as_rows, as_columns] :
         {std::tuple{&in_.q, &queries_, &query_rows_, &query_columns_}, {&in_.dout, &douts_, &dout_rows_, &dout_columns_}}) {
      in_.copy(*from, row, tokens, first_head, group, to->data());
      const float* x = to->data();
      as_rows->pack(rows, [&](int64_t r, int64_t height, float* packed) {
        table_.f32.pack(x + r * head_dim, head_dim, height, head_dim, packed);
      });
      as_columns->pack(head_dim, [&](int64_t c, int64_t width, float* packed) {
        table_.pack_columns(x + c, head_dim, width, rows, packed);
      });
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t head = first_head + r % group;
      log_sum_[static_cast<size_t>(r)] = in_.log_sum.row<float>(row + r / group)[head];
      mean_[static_cast<size_t>(r)] =
          table_.dot(douts_.data() + r * head_dim, in_.head_row(in_.out, row + r / group, head), head_dim);
    }
  }

  const kernels::Table& table_;
  const Inputs& in_;
  int64_t tokens_;  // of a block
  Floats queries_, douts_, dqs_, log_sum_, mean_, p_, ds_;
  Tiles query_rows_, dout_rows_, query_columns_, dout_columns_, ds_rows_;
};

// Rows of dk or dv from the lanes' sums of one head, [head_dim, stride] each.
void add_lanes(const kernels::Table& table, std::span<Lane> lanes, Floats Lane::*sums, int64_t head_dim, Tensor& gradient) {
  const Lane& first = lanes[0];
  Floats& sum = lanes[0].*sums;
  for (const Lane& lane : lanes.subspan(1)) table.add((lane.*sums).data(), static_cast<int64_t>(sum.size()), sum.data());
  Floats rows = floats(first.stride() * kPanel);
  for (int64_t c = 0; c < head_dim; c += kPanel) {
    const int64_t columns = std::min<int64_t>(kPanel, head_dim - c);
    table.pack_panel_f32(sum.data() + c * first.stride(), columns, first.stride(), rows.data());
    for (int64_t j = 0; j < first.head->span->rows; ++j) {
      std::memcpy(gradient.row<float>(first.head->span->row_begin + j) + first.head->kv_head * head_dim + c,
                  rows.data() + j * kPanel, static_cast<size_t>(columns) * sizeof(float));
    }
  }
}

}  // namespace

void CpuBackend::attention_backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& log_sum,
                                    const Tensor& dout, std::span<const AttentionSpan> spans, int64_t head_dim, Tensor& dq,
                                    Tensor& dk, Tensor& dv) const {
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
  check_matrix(where, "log_sum", log_sum, q.dim(0), heads);
  for (const AttentionSpan& span : spans) {
    CMOE_CHECK(span.past == 0, "{}: a span with {} tokens before it, expected whole sequences", where, span.past);
    CMOE_CHECK(span.rows >= 0 && span.row_begin >= 0 && span.row_begin + span.rows <= q.dim(0),
               "{}: a span of rows {} .. {}, expected them within the batch's {}", where, span.row_begin,
               span.row_begin + span.rows, q.dim(0));
  }
  for (Tensor* gradient : {&dq, &dk, &dv}) {
    if (gradient->bytes() > 0) std::memset(gradient->raw(), 0, static_cast<size_t>(gradient->bytes()));
  }

  const Inputs in{.q = q,
                  .k = k,
                  .v = v,
                  .out = out,
                  .log_sum = log_sum,
                  .dout = dout,
                  .head_dim = head_dim,
                  .group = heads / kv_heads,
                  .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)))};
  std::vector<Head> packed;
  for (const AttentionSpan& span : spans) {
    for (int64_t head = 0; head < kv_heads; ++head) packed.push_back({&span, head, {}, {}, {}});
  }
  parallel_for(static_cast<int64_t>(packed.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) packed[static_cast<size_t>(i)].pack(table_, in);
  });
  std::vector<Lane> lanes;
  for (const Head& head : packed) {
    for (int64_t number = 0; number < kLanes; ++number) lanes.push_back({&head, number, {}, {}});
  }
  parallel_for(static_cast<int64_t>(lanes.size()), 1, [&](int64_t begin, int64_t end) {
    LaneBackward backward(table_, in);
    for (int64_t i = begin; i < end; ++i) backward.run(lanes[static_cast<size_t>(i)], dq);
  });
  parallel_for(static_cast<int64_t>(packed.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto of_head = std::span(lanes).subspan(static_cast<size_t>(i * kLanes), static_cast<size_t>(kLanes));
      add_lanes(table_, of_head, &Lane::dk, head_dim, dk);
      add_lanes(table_, of_head, &Lane::dv, head_dim, dv);
    }
  });
}

}  // namespace cmoe::cpu

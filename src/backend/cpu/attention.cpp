#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "base/error.h"
#include "base/parallel.h"

namespace cmoe::cpu {
namespace {

// Consecutive tokens of one span for one key-value head: a piece of work.
struct Piece {
  const AttentionSpan* span;
  int64_t kv_head, token, tokens;
};

void append(const Tensor& from, float* AttentionSpan::*cache, std::span<const AttentionSpan> spans, int64_t kv_heads,
            int64_t head_dim) {
  for (const AttentionSpan& span : spans) {
    parallel_for(span.rows, 64, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const float* row = from.row<float>(span.row_begin + i);
        for (int64_t head = 0; head < kv_heads; ++head) {
          std::memcpy(span.*cache + (head * span.capacity + span.past + i) * head_dim, row + head * head_dim,
                      static_cast<size_t>(head_dim) * sizeof(float));
        }
      }
    });
  }
}

}  // namespace

void CpuBackend::attention(const Tensor& q, const Tensor& k, const Tensor& v, std::span<const AttentionSpan> spans,
                           int64_t head_dim, DType dtype, Tensor& out, Tensor* log_sum) const {
  check_matrix("attention", "q", q, -1, -1);
  const int64_t rows = q.dim(0);
  check_matrix("attention", "k", k, rows, -1);
  check_matrix("attention", "v", v, rows, k.dim(1));
  check_matrix("attention", "out", out, rows, q.dim(1));
  CMOE_CHECK(head_dim > 0 && q.dim(1) % head_dim == 0 && k.dim(1) % head_dim == 0 && k.dim(1) > 0,
             "attention: q has {} columns and k {}, expected multiples of head_dim {}", q.dim(1), k.dim(1), head_dim);
  const int64_t heads = q.dim(1) / head_dim, kv_heads = k.dim(1) / head_dim;
  CMOE_CHECK(heads % kv_heads == 0, "attention: {} query heads, expected a multiple of the {} key-value heads", heads,
             kv_heads);
  if (log_sum) check_matrix("attention", "log_sum", *log_sum, rows, heads);
  for (const AttentionSpan& span : spans) {
    CMOE_CHECK(span.rows >= 0 && span.row_begin >= 0 && span.row_begin + span.rows <= rows,
               "attention: a span of rows {} .. {}, expected them within the batch's {}", span.row_begin,
               span.row_begin + span.rows, rows);
    CMOE_CHECK(span.past >= 0 && span.past + span.rows <= span.capacity,
               "attention: a cache of {} tokens, expected room for {} + {}; make the context larger", span.capacity, span.past,
               span.rows);
  }
  append(k, &AttentionSpan::key, spans, kv_heads, head_dim);
  append(v, &AttentionSpan::value, spans, kv_heads, head_dim);

  const int64_t group = heads / kv_heads;
  const int64_t most = std::max<int64_t>(1, 192 / group);  // tokens: 192 rows share a transposed block of keys
  std::vector<Piece> pieces;
  for (const AttentionSpan& span : spans) {
    for (int64_t token = 0; token < span.rows; token += most) {
      for (int64_t head = 0; head < kv_heads; ++head) pieces.push_back({&span, head, token, std::min(most, span.rows - token)});
    }
  }
  // Longest first, so that no thread is left with a long piece at the end.
  const auto cost = [](const Piece& piece) { return piece.tokens * (piece.span->past + piece.token); };
  std::stable_sort(pieces.begin(), pieces.end(), [&](const Piece& a, const Piece& b) { return cost(a) > cost(b); });

  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
  const kernels::Attention& kernel = dtype == DType::bf16 ? bf16_attention_ : table_.attention;
  const int64_t scratch_bytes = kernel.scratch(most * group, head_dim) * static_cast<int64_t>(sizeof(float));
  parallel_for(static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end) {
    thread_local Scratch scratch;
    auto* memory = reinterpret_cast<float*>(scratch.resize(scratch_bytes));
    for (int64_t i = begin; i < end; ++i) {
      const Piece& piece = pieces[static_cast<size_t>(i)];
      const AttentionSpan& span = *piece.span;
      const int64_t row = span.row_begin + piece.token, column = piece.kv_head * group * head_dim;
      kernel.run({.q = q.row<float>(row) + column,
                  .q_stride = q.dim(1),
                  .tokens = piece.tokens,
                  .position = span.past + piece.token,
                  .group = group,
                  .head_dim = head_dim,
                  .key = span.key + piece.kv_head * span.capacity * head_dim,
                  .value = span.value + piece.kv_head * span.capacity * head_dim,
                  .out = out.row<float>(row) + column,
                  .out_stride = out.dim(1),
                  .log_sum = log_sum ? log_sum->row<float>(row) + piece.kv_head * group : nullptr,
                  .log_sum_stride = heads,
                  .scale = scale},
                 memory);
    }
  });
}

}  // namespace cmoe::cpu

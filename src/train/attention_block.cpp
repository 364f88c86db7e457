#include "train/attention_block.h"

namespace cmoe {
namespace {

// Spans of the documents; keys and values of each lie in `cache`, which lives as long as the spans are used.
std::vector<AttentionSpan> spans_of(const Segments& segments, int64_t kv_size, Tensor* cache) {
  int64_t total = 0;
  for (int64_t rows : segments.rows) total += rows;
  if (cache) *cache = Tensor(DType::f32, {2, total * kv_size});
  std::vector<AttentionSpan> spans;
  int64_t row = 0;
  for (int64_t rows : segments.rows) {
    spans.push_back({.row_begin = row,
                     .rows = rows,
                     .past = 0,
                     .key = cache ? cache->row<float>(0) + row * kv_size : nullptr,
                     .value = cache ? cache->row<float>(1) + row * kv_size : nullptr,
                     .capacity = rows});
    row += rows;
  }
  return spans;
}

}  // namespace

void AttentionBlock::forward(const SequencePass& pass, const Segments& segments, Tensor& x, Saved& saved) const {
  const Backend& backend = pass.backend;
  const int64_t rows = x.dim(0), q_size = q.base->out_features(), kv_size = k.base->out_features();
  saved.x = x.clone();
  saved.a = Tensor(DType::f32, x.shape());
  saved.query = Tensor(DType::f32, {rows, q_size});
  saved.key = Tensor(DType::f32, {rows, kv_size});
  saved.value = Tensor(DType::f32, {rows, kv_size});
  saved.out = Tensor(DType::f32, {rows, q_size});
  backend.rms_norm(x, *norm, epsilon, saved.a);
  lora_forward(pass, saved.a, {}, {{q, saved.query, saved.q}, {k, saved.key, saved.k}, {v, saved.value, saved.v}}, false);
  backend.rope(saved.query, head_dim, segments.positions, *rope_cos, *rope_sin);
  backend.rope(saved.key, head_dim, segments.positions, *rope_cos, *rope_sin);
  Tensor cache;
  saved.log_sum = Tensor(DType::f32, {rows, q_size / head_dim});
  // In f32 whatever the weights are: backward makes the same products again in f32.
  backend.attention(saved.query, saved.key, saved.value, spans_of(segments, kv_size, &cache), head_dim, DType::f32, saved.out,
                    &saved.log_sum);
  lora_forward(pass, saved.out, {}, {{o, x, saved.o}}, /*accumulate=*/true);
}

void AttentionBlock::backward(const SequencePass& pass, const Segments& segments, const Saved& saved, Tensor& dx) const {
  const Backend& backend = pass.backend;
  Tensor dout(DType::f32, saved.out.shape());
  Tensor dq(DType::f32, saved.query.shape()), dk(DType::f32, saved.key.shape()), dv(DType::f32, saved.value.shape());
  Tensor da(DType::f32, saved.a.shape());
  lora_backward(pass, saved.out, {}, {{o, dx, saved.o}}, dout, false);
  backend.attention_backward(saved.query, saved.key, saved.value, saved.out, saved.log_sum, dout,
                             spans_of(segments, saved.key.dim(1), nullptr), head_dim, dq, dk, dv);
  backend.rope(dq, head_dim, segments.positions, *rope_cos, *rope_back);
  backend.rope(dk, head_dim, segments.positions, *rope_cos, *rope_back);
  lora_backward(pass, saved.a, {}, {{q, dq, saved.q}, {k, dk, saved.k}, {v, dv, saved.v}}, da, false);
  backend.rms_norm_backward(saved.x, *norm, epsilon, da, dx);  // beside the residual path, which dx already holds
}

}  // namespace cmoe

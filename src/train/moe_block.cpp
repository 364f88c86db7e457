#include "train/moe_block.h"

#include <cmath>

#include "base/parallel.h"

namespace cmoe {
namespace {

// In 16 sums side by side, so that compilers use vectors; the order depends on n alone.
float dot(const float* a, const float* b, int64_t n) {
  float sums[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int lane = 0; lane < 16; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  }
  for (int64_t lane = 0; i < n; ++i, ++lane) sums[lane] += a[i] * b[i];
  for (int width = 8; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
  }
  return sums[0];
}

// Calls body(t, pair) for the pairs of every token, tokens on all threads, the pairs of one token in order.
template <class Body>
void for_each_pair(const Routing& routing, const Body& body) {
  parallel_for(routing.tokens(), 64, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const auto at = static_cast<size_t>(t);
      for (int32_t pair = routing.expert_offset[at]; pair < routing.expert_offset[at + 1]; ++pair)
        body(t, static_cast<size_t>(pair));
    }
  });
}

std::vector<float> softmax(const float* s, int64_t n) {
  float top = s[0];
  for (int64_t j = 1; j < n; ++j) top = std::max(top, s[j]);
  std::vector<float> p(static_cast<size_t>(n));
  float sum = 0;
  for (int64_t j = 0; j < n; ++j) sum += p[static_cast<size_t>(j)] = std::exp(s[j] - top);
  for (float& value : p) value /= sum;
  return p;
}

std::span<const int32_t> tokens_of(const Grouping& grouping, size_t expert) {
  return std::span(grouping.row_token)
      .subspan(static_cast<size_t>(grouping.expert_begin[expert]),
               static_cast<size_t>(grouping.expert_begin[expert + 1] - grouping.expert_begin[expert]));
}

}  // namespace

void MoeBlock::forward(const SequencePass& pass, const Tensor& input, Tensor& x, Saved& saved) const {
  if (shared) shared->forward(pass, input, {}, x, /*accumulate=*/true, saved.shared);
  if (compensation_bias.size() > 0) pass.backend.add_bias(compensation_bias, x);
  if (experts.empty()) return;
  const int64_t d = input.dim(1);
  score(pass, input, saved);
  saved.routing = select_experts(router, saved.scores);
  saved.grouping = group_by_expert(saved.routing, static_cast<int64_t>(experts.size()));
  const Grouping& grouping = saved.grouping;
  saved.rows = Tensor(DType::f32, {static_cast<int64_t>(grouping.row_token.size()), d});
  pass.backend.gather_rows(input, grouping.row_token, saved.rows);
  Tensor outputs(DType::f32, saved.rows.shape());
  saved.experts.assign(experts.size(), {});
  for (size_t e = 0; e < experts.size(); ++e) {
    const int64_t begin = grouping.expert_begin[e], end = grouping.expert_begin[e + 1];
    Tensor out = outputs.rows(begin, end);
    experts[e].forward(pass, saved.rows.rows(begin, end), tokens_of(grouping, e), out, false, saved.experts[e]);
  }
  for_each_pair(saved.routing, [&](int64_t t, size_t pair) {
    float* y = x.row<float>(t);
    const float* out = outputs.row<float>(grouping.pair_row[pair]);
    const float g = saved.routing.weight[pair];
    for (int64_t i = 0; i < d; ++i) y[i] += g * out[i];
  });
  if (weighs_outputs() || regression > 0) saved.outputs = outputs;
}

void MoeBlock::score(const SequencePass& pass, const Tensor& input, Saved& saved) const {
  if (router.kind == RouterKind::linear) {
    saved.scores = router_scores(pass.backend, router, input);
    return;
  }
  saved.scores = Tensor(DType::f32, {input.dim(0), router.num_experts()});
  saved.gate = Tensor(DType::f32, saved.scores.shape());
  saved.up = Tensor(DType::f32, saved.scores.shape());
  pass.backend.linear(input, router.gate_proj, saved.gate);
  pass.backend.linear(input, router.up_proj, saved.up);
  pass.backend.swiglu(saved.gate, saved.up, saved.scores);
  if (router.kind == RouterKind::authors) {
    for (float& s : saved.scores.span<float>()) s = std::abs(s);
  }
}

void MoeBlock::backward(const SequencePass& pass, const Tensor& input, const Saved& saved, const Tensor& dy,
                        Tensor& dinput) const {
  if (shared) {
    shared->backward(pass, input, {}, dy, saved.shared, dinput, false);
  } else {
    std::fill(dinput.span<float>().begin(), dinput.span<float>().end(), 0.0f);
  }
  if (experts.empty()) return;
  const Grouping& grouping = saved.grouping;
  const int64_t d = input.dim(1);
  Tensor dout(DType::f32, saved.rows.shape()), drows(DType::f32, saved.rows.shape());
  for_each_pair(saved.routing, [&](int64_t t, size_t pair) {
    const float* from = dy.row<float>(t);
    float* to = dout.row<float>(grouping.pair_row[pair]);
    const float g = saved.routing.weight[pair];
    for (int64_t i = 0; i < d; ++i) to[i] = g * from[i];
  });
  for (size_t e = 0; e < experts.size(); ++e) {
    const int64_t begin = grouping.expert_begin[e], end = grouping.expert_begin[e + 1];
    Tensor dx = drows.rows(begin, end);
    experts[e].backward(pass, saved.rows.rows(begin, end), tokens_of(grouping, e), dout.rows(begin, end), saved.experts[e], dx,
                        false);
  }
  for_each_pair(saved.routing, [&](int64_t t, size_t pair) {
    const float* from = drows.row<float>(grouping.pair_row[pair]);
    float* to = dinput.row<float>(t);
    for (int64_t i = 0; i < d; ++i) to[i] += from[i];
  });
  if (saved.outputs.size() > 0) router_backward(pass, input, saved, dy, dinput);
}

// With p = softmax(s), g_j = 1 + p_j u_j and dg_j = dy . E_j(x) of the active experts (0 of the others):
//   du_j = sum_t dg_j p_j,   ds_j = p_j (dg_j u_j - sum_k dg_k u_k p_k)
void MoeBlock::router_backward(const SequencePass& pass, const Tensor& input, const Saved& saved, const Tensor& dy,
                               Tensor& dinput) const {
  const int64_t routed = saved.scores.dim(1), d = input.dim(1);
  const Routing& routing = saved.routing;
  std::vector<float> dg(routing.expert_idx.size()), norm(regression > 0 ? dg.size() : 0);
  for_each_pair(routing, [&](int64_t t, size_t pair) {
    const float* out = saved.outputs.row<float>(saved.grouping.pair_row[pair]);
    dg[pair] = dot(dy.row<float>(t), out, d);
    if (regression > 0) norm[pair] = std::sqrt(dot(out, out, d));
  });
  Tensor ds = Tensor::zeros(DType::f32, saved.scores.shape());
  Tensor du = scale >= 0 ? pass.parameters.view(*pass.gradient, scale) : Tensor();
  for (int64_t t = 0; weighs_outputs() && t < routing.tokens(); ++t) {
    const std::vector<float> p = softmax(saved.scores.row<float>(t), routed);
    const float* u = router.scale.data<float>();
    float *line = ds.row<float>(t), mean = 0;
    auto pair = static_cast<size_t>(routing.expert_offset[static_cast<size_t>(t)]);
    for (int32_t expert : routing.experts(t)) {
      const auto j = static_cast<size_t>(expert);
      if (scale >= 0) du.data<float>()[j] += dg[pair] * p[j];
      line[j] = dg[pair++] * u[j];
      mean += line[j] * p[j];
    }
    for (int64_t j = 0; j < routed; ++j) line[j] = p[static_cast<size_t>(j)] * (line[j] - mean);
  }
  Tensor ds_weights = ds;
  if (regression > 0) {
    ds_weights = ds.clone();  // the regression pulls on the router's weights and not on what it reads
    for (int64_t t = 0; t < routing.tokens(); ++t) {
      auto pair = static_cast<size_t>(routing.expert_offset[static_cast<size_t>(t)]);
      for (int32_t j : routing.experts(t))
        ds_weights.row<float>(t)[j] += 2 * regression * pass.token_weight * (saved.scores.row<float>(t)[j] - norm[pair++]);
    }
  }
  score_backward(pass, input, saved, ds, ds_weights, dinput);
}

void MoeBlock::score_backward(const SequencePass& pass, const Tensor& input, const Saved& saved, const Tensor& ds,
                              const Tensor& ds_weights, Tensor& dinput) const {
  const Backend& backend = pass.backend;
  const auto gradient = [&](int64_t index) { return pass.parameters.view(*pass.gradient, index); };
  if (router.kind == RouterKind::linear) {
    backend.linear_transposed(ds, router.weight, dinput, /*accumulate=*/true);
    if (weight < 0) return;
    Tensor dw = gradient(weight), db = gradient(bias);
    backend.multiply_transposed(ds_weights, input, dw, /*accumulate=*/true);
    for (int64_t t = 0; t < ds.dim(0); ++t) {
      for (int64_t j = 0; j < ds.dim(1); ++j) db.data<float>()[j] += ds_weights.row<float>(t)[j];
    }
    return;
  }
  const auto through_product = [&](const Tensor& scores, Tensor& dgate, Tensor& dup) {
    Tensor signed_scores = scores;
    if (router.kind == RouterKind::authors) {  // s = |silu(gate) up|
      signed_scores = scores.clone();
      for (int64_t i = 0; i < scores.size(); ++i) {
        const float gate = saved.gate.data<float>()[i];
        if ((gate < 0) != (saved.up.data<float>()[i] < 0)) signed_scores.data<float>()[i] *= -1;
      }
    }
    dgate = Tensor(DType::f32, scores.shape());
    dup = Tensor(DType::f32, scores.shape());
    backend.swiglu_backward(saved.gate, saved.up, signed_scores, dgate, dup);
  };
  Tensor dgate, dup;
  through_product(ds, dgate, dup);
  backend.linear_transposed(dgate, router.gate_proj, dinput, /*accumulate=*/true);
  backend.linear_transposed(dup, router.up_proj, dinput, /*accumulate=*/true);
  if (gate_proj < 0) return;
  through_product(ds_weights, dgate, dup);
  Tensor dw_gate = gradient(gate_proj), dw_up = gradient(up_proj);
  backend.multiply_transposed(dgate, input, dw_gate, /*accumulate=*/true);
  backend.multiply_transposed(dup, input, dw_up, /*accumulate=*/true);
}

}  // namespace cmoe

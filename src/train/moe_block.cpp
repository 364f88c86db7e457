#include "train/moe_block.h"

#include <cmath>

#include "base/parallel.h"
#include "moe/pair_exchange.h"

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

std::vector<float> softmax(const float* s, int64_t n) {
  float top = s[0];
  for (int64_t j = 1; j < n; ++j) top = std::max(top, s[j]);
  std::vector<float> p(static_cast<size_t>(n));
  float sum = 0;
  for (int64_t j = 0; j < n; ++j) sum += p[static_cast<size_t>(j)] = std::exp(s[j] - top);
  for (float& value : p) value /= sum;
  return p;
}

}  // namespace

void MoeBlock::forward(const GroupPass& pass, const Tensor& input, Tensor& x, Saved& saved) const {
  std::unique_ptr<PendingDispatch> under_way;
  if (!experts.empty()) {
    score(pass.own, input, saved);
    saved.routing = select_experts(router, saved.scores);
    under_way = parallel->dispatcher().dispatch_start(input, saved.routing, parallel->placement(layer));
  }
  if (shared) shared->forward(pass.own, input, {}, x, /*accumulate=*/true, saved.shared);
  if (compensation_bias.size() > 0) pass.own.backend.add_bias(compensation_bias, x);
  if (experts.empty()) return;

  Dispatched arrived = under_way->wait();
  receive(arrived.handle, arrived.expert_offset, saved);
  saved.rows = arrived.rows;
  Tensor outputs(DType::f32, saved.rows.shape());
  saved.experts.assign(saved.row_begin.size() - 1, {});
  for (const RowGroup& group : row_groups(pass, saved)) {
    Tensor out = outputs.rows(group.begin, group.end);
    group.expert.forward(group.source, saved.rows.rows(group.begin, group.end), group.tokens, out, false,
                         saved.experts[group.index]);
  }
  parallel->dispatcher().combine(outputs, std::move(arrived.handle), x);
  if (needs_outputs()) saved.outputs = outputs;
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

// What the experts must know of the pairs beside their rows, and where each rank's rows begin.
void MoeBlock::receive(const DispatchHandle& handle, const std::vector<int64_t>& expert_offset, Saved& saved) const {
  struct Pair {
    int32_t token;
    float factor;
  };
  std::vector<Pair> pairs;
  for (int64_t t = 0; t < saved.routing.tokens(); ++t) {
    for (size_t i = 0; i < saved.routing.experts(t).size(); ++i)
      pairs.push_back({static_cast<int32_t>(t), saved.routing.weight[pairs.size()]});
  }
  saved.row_token.clear();
  saved.row_factor.clear();
  for (const Pair& pair : send_with_rows<Pair>(parallel->group(), handle, pairs)) {
    saved.row_token.push_back(pair.token);
    saved.row_factor.push_back(pair.factor);
  }

  const auto ranks = static_cast<size_t>(parallel->ranks());
  std::vector<size_t> source(saved.row_token.size());
  for (size_t r = 0; r < ranks; ++r) {
    for (int64_t q = handle.served_begin[r]; q < handle.served_begin[r + 1]; ++q)
      source[static_cast<size_t>(handle.row_of_served[static_cast<size_t>(q)])] = r;
  }
  saved.row_begin = {0};
  for (size_t e = 0; e + 1 < expert_offset.size(); ++e) {
    int64_t row = expert_offset[e];
    for (size_t r = 0; r < ranks; ++r) {
      while (row < expert_offset[e + 1] && source[static_cast<size_t>(row)] == r) ++row;
      saved.row_begin.push_back(row);
    }
  }
}

std::vector<MoeBlock::RowGroup> MoeBlock::row_groups(const GroupPass& pass, const Saved& saved) const {
  const auto local = parallel->placement(layer).local_experts(parallel->rank());
  const size_t ranks = pass.sources.size();
  std::vector<RowGroup> groups;
  for (size_t i = 0; i + 1 < saved.row_begin.size(); ++i) {
    const int64_t begin = saved.row_begin[i], end = saved.row_begin[i + 1];
    if (begin == end) continue;
    groups.push_back({i, experts[static_cast<size_t>(index_of(local[i / ranks]))], pass.sources[i % ranks], begin, end,
                      std::span(saved.row_token).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin))});
  }
  return groups;
}

void MoeBlock::backward(const GroupPass& pass, const Tensor& input, const Saved& saved, const Tensor& dy,
                        Tensor& dinput) const {
  std::unique_ptr<PendingDispatch> under_way;
  if (!experts.empty()) {
    Routing unweighted = saved.routing;  // the factors wait where the experts are
    std::fill(unweighted.weight.begin(), unweighted.weight.end(), 1.0f);
    under_way = parallel->dispatcher().dispatch_start(dy, unweighted, parallel->placement(layer));
  }
  if (shared) {
    shared->backward(pass.own, input, {}, dy, saved.shared, dinput, false);
  } else {
    std::fill(dinput.span<float>().begin(), dinput.span<float>().end(), 0.0f);
  }
  if (experts.empty()) return;

  Dispatched arrived = under_way->wait();
  const int64_t d = input.dim(1);
  Tensor &dout = arrived.rows, drows(DType::f32, dout.shape());
  std::vector<PairGradient> of_rows(needs_outputs() ? saved.row_token.size() : 0);
  parallel_for(dout.dim(0), 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const auto at = static_cast<size_t>(row);
      float* to = dout.row<float>(row);
      if (needs_outputs()) {
        const float* out = saved.outputs.row<float>(row);
        of_rows[at] = {dot(to, out, d), regression > 0 ? std::sqrt(dot(out, out, d)) : 0.0f};
      }
      for (int64_t i = 0; i < d; ++i) to[i] *= saved.row_factor[at];
    }
  });
  for (const RowGroup& group : row_groups(pass, saved)) {
    Tensor dx = drows.rows(group.begin, group.end);
    group.expert.backward(group.source, saved.rows.rows(group.begin, group.end), group.tokens,
                          dout.rows(group.begin, group.end), saved.experts[group.index], dx, false);
  }
  std::vector<PairGradient> of_pairs;
  if (needs_outputs()) of_pairs = send_home<PairGradient>(parallel->group(), arrived.handle, of_rows);
  parallel->dispatcher().combine(drows, std::move(arrived.handle), dinput);
  if (needs_outputs()) router_backward(pass.own, input, saved, of_pairs, dinput);
}

// With p = softmax(s), g_j = 1 + p_j u_j and dg_j = dy . E_j(x) of the active experts (0 of the others):
//   du_j = sum_t dg_j p_j,   ds_j = p_j (dg_j u_j - sum_k dg_k u_k p_k)
void MoeBlock::router_backward(const SequencePass& pass, const Tensor& input, const Saved& saved,
                               const std::vector<PairGradient>& pairs, Tensor& dinput) const {
  const int64_t routed = saved.scores.dim(1);
  const Routing& routing = saved.routing;
  Tensor ds = Tensor::zeros(DType::f32, saved.scores.shape());
  Tensor du = scale >= 0 ? pass.parameters.view(*pass.gradient, scale) : Tensor();
  for (int64_t t = 0; weighs_outputs() && t < routing.tokens(); ++t) {
    const std::vector<float> p = softmax(saved.scores.row<float>(t), routed);
    const float* u = router.scale.data<float>();
    float *line = ds.row<float>(t), mean = 0;
    auto pair = static_cast<size_t>(routing.expert_offset[static_cast<size_t>(t)]);
    for (int32_t expert : routing.experts(t)) {
      const auto j = static_cast<size_t>(expert);
      if (scale >= 0) du.data<float>()[j] += pairs[pair].factor * p[j];
      line[j] = pairs[pair++].factor * u[j];
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
        ds_weights.row<float>(t)[j] +=
            2 * regression * pass.token_weight * (saved.scores.row<float>(t)[j] - pairs[pair++].norm);
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

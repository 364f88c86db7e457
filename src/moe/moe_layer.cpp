#include "moe/moe_layer.h"

#include "base/error.h"
#include "base/parallel.h"

namespace cmoe {
namespace {

// Rows of each expert, in token order, and where each (token, expert) pair's output will lie.
struct Grouping {
  std::vector<int64_t> expert_begin;  // [R + 1] offsets into the grouped rows
  std::vector<int32_t> row_token;     // [pairs] token of each grouped row
  std::vector<int32_t> pair_row;      // [pairs] grouped row of each pair of the routing
};

Grouping group_by_expert(const Routing& routing, int64_t experts) {
  Grouping grouping;
  grouping.expert_begin.assign(static_cast<size_t>(experts) + 1, 0);
  for (int32_t expert : routing.expert_idx) ++grouping.expert_begin[static_cast<size_t>(expert) + 1];
  for (size_t e = 0; e < static_cast<size_t>(experts); ++e) grouping.expert_begin[e + 1] += grouping.expert_begin[e];
  grouping.row_token.resize(routing.expert_idx.size());
  grouping.pair_row.resize(routing.expert_idx.size());
  std::vector<int64_t> next(grouping.expert_begin.begin(), grouping.expert_begin.end() - 1);
  for (int64_t t = 0; t < routing.tokens(); ++t) {
    for (int32_t pair = routing.expert_offset[static_cast<size_t>(t)]; pair < routing.expert_offset[static_cast<size_t>(t) + 1];
         ++pair) {
      const auto row = static_cast<size_t>(next[static_cast<size_t>(routing.expert_idx[static_cast<size_t>(pair)])]++);
      grouping.row_token[row] = static_cast<int32_t>(t);
      grouping.pair_row[static_cast<size_t>(pair)] = static_cast<int32_t>(row);
    }
  }
  return grouping;
}

}  // namespace

void MoeLayer::add_to(const Backend& backend, int64_t layer, const Tensor& input, Tensor& x, MoeObserver* observer) const {
  const int64_t d = input.dim(1);
  if (shared) gated_ffn(backend, *shared, input, x, /*accumulate=*/true);
  if (compensation_bias.size() > 0) backend.add_bias(compensation_bias, x);
  if (experts.empty()) {
    Routing none;
    none.expert_offset.assign(static_cast<size_t>(input.dim(0)) + 1, 0);
    if (observer) observer->on_routing(layer, none);
    return;
  }
  const Routing routing = select_experts(router, router_scores(backend, router, input));
  if (observer) observer->on_routing(layer, routing);

  const Grouping grouping = group_by_expert(routing, static_cast<int64_t>(experts.size()));
  Tensor rows(DType::f32, {static_cast<int64_t>(grouping.row_token.size()), d});
  Tensor outputs(DType::f32, rows.shape());
  backend.gather_rows(input, grouping.row_token, rows);
  for (size_t e = 0; e < experts.size(); ++e) {
    Tensor out = outputs.rows(grouping.expert_begin[e], grouping.expert_begin[e + 1]);
    gated_ffn(backend, experts[e], rows.rows(grouping.expert_begin[e], grouping.expert_begin[e + 1]), out);
  }
  // Ascending expert index per token: the sum does not depend on how tokens were grouped.
  parallel_for(routing.tokens(), 64, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* y = x.row<float>(t);
      for (int32_t pair = routing.expert_offset[static_cast<size_t>(t)];
           pair < routing.expert_offset[static_cast<size_t>(t) + 1]; ++pair) {
        const float* out = outputs.row<float>(grouping.pair_row[static_cast<size_t>(pair)]);
        const float g = routing.weight[static_cast<size_t>(pair)];
        for (int64_t i = 0; i < d; ++i) y[i] += g * out[i];
      }
    }
  });
}

int64_t MoeLayer::bytes() const {
  int64_t bytes = shared ? shared->bytes() : 0;
  for (const GatedFfn& expert : experts) bytes += expert.bytes();
  return bytes;
}

}  // namespace cmoe

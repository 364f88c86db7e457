#include "moe/combine.h"

#include <vector>

namespace cmoe {

void add_partial(float* __restrict__ y, const float* __restrict__ partial, float weight, int64_t hidden_size) {
  for (int64_t i = 0; i < hidden_size; ++i) y[i] += weight * partial[i];
}

void add_partial(float* __restrict__ y, const bf16* __restrict__ partial, float weight, int64_t hidden_size) {
  for (int64_t i = 0; i < hidden_size; ++i) y[i] += weight * to_f32(partial[i]);
}

void reference_combine(const Tensor& x, const Routing& routing,
                       const std::function<void(GlobalExpert expert, const float* row, float* out)>& expert, Tensor& y) {
  const int64_t d = x.dim(1);
  std::vector<float> partial(static_cast<size_t>(d));
  for (int64_t t = 0; t < routing.tokens(); ++t) {
    for (int32_t p = routing.expert_offset[static_cast<size_t>(t)]; p < routing.expert_offset[static_cast<size_t>(t) + 1];
         ++p) {
      expert(GlobalExpert{routing.expert_idx[static_cast<size_t>(p)]}, x.row<float>(t), partial.data());
      for (int64_t i = 0; i < d; ++i)
        y.row<float>(t)[i] += routing.weight[static_cast<size_t>(p)] * partial[static_cast<size_t>(i)];
    }
  }
}

}  // namespace cmoe

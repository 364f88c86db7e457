#pragma once

#include <algorithm>
#include <random>
#include <vector>

#include "moe/placement.h"
#include "moe/routing.h"
#include "tensor/tensor.h"

namespace cmoe {

/// How the tokens of a test case choose their experts.
enum class Pattern { mixed, all_to_one, all_experts, none };
inline constexpr uint64_t kPatterns = 4;

inline void append_token(Routing& routing, std::vector<int32_t> experts, std::mt19937_64& random) {
  std::sort(experts.begin(), experts.end());
  for (int32_t e : experts) {
    routing.expert_idx.push_back(e);
    routing.weight.push_back(std::uniform_real_distribution<float>(-1.5f, 1.5f)(random));
  }
  routing.expert_offset.push_back(static_cast<int32_t>(routing.expert_idx.size()));
}

/// Ragged sets. `mixed`: each token takes each expert with a probability of its own.
inline Routing random_routing(int64_t tokens, int32_t num_experts, Pattern pattern, std::mt19937_64& random) {
  Routing routing;
  std::uniform_real_distribution<double> uniform;
  const int32_t one = num_experts > 0 ? static_cast<int32_t>(random() % static_cast<uint64_t>(num_experts)) : 0;
  for (int64_t t = 0; t < tokens; ++t) {
    const double p = uniform(random);
    std::vector<int32_t> experts;
    for (int32_t e = 0; e < num_experts; ++e) {
      const bool takes = pattern == Pattern::all_experts || (pattern == Pattern::all_to_one && e == one) ||
                         (pattern == Pattern::mixed && uniform(random) < p);
      if (takes) experts.push_back(e);
    }
    append_token(routing, experts, random);
  }
  return routing;
}

/// Every expert on one to `most_copies` random ranks; some ranks hold none by chance.
inline ExpertPlacement random_placement(int32_t num_experts, int ranks, int most_copies, std::mt19937_64& random) {
  std::vector<std::vector<int>> ranks_of_expert(static_cast<size_t>(num_experts));
  for (auto& copies : ranks_of_expert) {
    std::vector<int> all(static_cast<size_t>(ranks));
    for (int r = 0; r < ranks; ++r) all[static_cast<size_t>(r)] = r;
    std::shuffle(all.begin(), all.end(), random);
    const auto wanted = 1 + random() % static_cast<uint64_t>(std::min(most_copies, ranks));
    copies.assign(all.begin(), all.begin() + static_cast<int64_t>(wanted));
  }
  return ExpertPlacement::of(std::move(ranks_of_expert), ranks);
}

inline Tensor random_rows(int64_t tokens, int64_t d, std::mt19937_64& random) {
  Tensor x(DType::f32, {tokens, d});
  std::normal_distribution<float> normal;
  for (float& value : x.span<float>()) value = normal(random);
  return x;
}

/// An expert that mixes neighbours, so that a row that goes astray or arrives shifted is seen.
inline void test_expert(GlobalExpert expert, const float* row, float* out, int64_t d) {
  const auto e = static_cast<float>(index_of(expert));
  for (int64_t i = 0; i < d; ++i) out[i] = row[i] * (0.5f + 0.37f * e) + row[(i + 1) % d] * row[i] * (e - 1.25f);
}

}  // namespace cmoe

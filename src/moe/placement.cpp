#include "moe/placement.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace cmoe {

namespace {

// FNV-1a over 64-bit words.
void mix(uint64_t& hash, uint64_t word) { hash = (hash ^ word) * 0x100000001b3ull; }

}  // namespace

ExpertPlacement ExpertPlacement::of(std::vector<std::vector<int>> ranks_of_expert, int ranks) {
  CMOE_CHECK(ranks >= 1, "expert placement: {} ranks; expected at least 1", ranks);
  ExpertPlacement placement;
  placement.copies_ = std::move(ranks_of_expert);
  placement.local_.resize(static_cast<size_t>(ranks));
  const size_t n = placement.copies_.size(), p = static_cast<size_t>(ranks);
  placement.serving_.resize(n * p);
  placement.local_index_.assign(n * p, -1);
  placement.fingerprint_ = 0xcbf29ce484222325ull;
  mix(placement.fingerprint_, p);
  for (size_t e = 0; e < n; ++e) {
    std::vector<int>& copies = placement.copies_[e];
    CMOE_CHECK(!copies.empty(), "expert placement: expert {} has no copy; expected at least one rank that holds it", e);
    std::sort(copies.begin(), copies.end());
    mix(placement.fingerprint_, copies.size());
    for (size_t i = 0; i < copies.size(); ++i) {
      CMOE_CHECK(copies[i] >= 0 && copies[i] < ranks, "expert placement: expert {} is placed on rank {}; expected 0 to {}", e,
                 copies[i], ranks - 1);
      CMOE_CHECK(i == 0 || copies[i] != copies[i - 1], "expert placement: expert {} is placed twice on rank {}", e, copies[i]);
      auto& local = placement.local_[static_cast<size_t>(copies[i])];
      placement.local_index_[e * p + static_cast<size_t>(copies[i])] = static_cast<int32_t>(local.size());
      local.push_back(static_cast<GlobalExpert>(e));
      mix(placement.fingerprint_, static_cast<uint64_t>(copies[i]));
    }
    size_t turn = e;
    for (size_t home = 0; home < p; ++home) {
      const bool at_home = placement.local_index_[e * p + home] >= 0;
      placement.serving_[e * p + home] = at_home ? static_cast<int>(home) : copies[turn++ % copies.size()];
    }
  }
  return placement;
}

ExpertPlacement ExpertPlacement::contiguous(int32_t num_experts, int ranks) {
  CMOE_CHECK(ranks >= 1, "expert placement: {} ranks; expected at least 1", ranks);
  CMOE_CHECK(num_experts >= 0, "expert placement: {} experts; expected none or more", num_experts);
  std::vector<std::vector<int>> ranks_of_expert;
  for (int rank = 0; rank < ranks; ++rank) {
    const int32_t count = num_experts / ranks + (rank < num_experts % ranks ? 1 : 0);
    ranks_of_expert.insert(ranks_of_expert.end(), static_cast<size_t>(count), {rank});
  }
  return of(std::move(ranks_of_expert), ranks);
}

std::optional<LocalExpert> ExpertPlacement::find_local(GlobalExpert expert, int rank) const {
  const int32_t index = local_index_[static_cast<size_t>(index_of(expert)) * local_.size() + static_cast<size_t>(rank)];
  if (index < 0) return std::nullopt;
  return static_cast<LocalExpert>(index);
}

std::vector<double> ExpertPlacement::rank_load(std::span<const double> load) const {
  CMOE_CHECK(load.size() == copies_.size(), "expert placement: {} loads for {} experts", load.size(), copies_.size());
  std::vector<double> total(local_.size(), 0.0);
  const double share = 1.0 / static_cast<double>(local_.size());
  for (int32_t e = 0; e < num_experts(); ++e) {
    for (int home = 0; home < ranks(); ++home) {
      total[static_cast<size_t>(rank_for(GlobalExpert{e}, home))] += load[static_cast<size_t>(e)] * share;
    }
  }
  return total;
}

double ExpertPlacement::max_over_mean(std::span<const double> load) const {
  const std::vector<double> total = rank_load(load);
  const double sum = std::accumulate(total.begin(), total.end(), 0.0);
  return sum > 0 ? *std::max_element(total.begin(), total.end()) * static_cast<double>(total.size()) / sum : 1.0;
}

}  // namespace cmoe

#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "moe/expert_id.h"

namespace cmoe {

/// Which ranks hold a copy of which routed expert of one layer. Every expert has at least one copy; a rank may hold none.
/// Immutable; every rank of a group must hold an equal one (the dispatcher compares fingerprints).
class ExpertPlacement {
 public:
  /// Consecutive experts per rank; the first num_experts % ranks ranks hold one more. Neither has to divide the other.
  static ExpertPlacement contiguous(int32_t num_experts, int ranks);

  /// Even loads: hot experts get redundant copies, the heaviest copy first goes to the rank with the least load, then copies
  /// move and swap until none of that lowers the largest load. Ties go to the smaller index: equal input gives an equal
  /// placement.
  ///
  /// @param load               [num_experts] tokens (or any unit) each expert is expected to take, >= 0
  /// @param redundant_copies   copies beyond the first, in all; fewer are placed when more would not lower the load
  static ExpertPlacement balanced(std::span<const double> load, int ranks, int redundant_copies = 0);

  /// @param ranks_of_expert   [num_experts] the ranks that hold each expert
  /// @throws Error            on an expert without a copy, a rank out of range or named twice
  static ExpertPlacement of(std::vector<std::vector<int>> ranks_of_expert, int ranks);

  int32_t num_experts() const { return static_cast<int32_t>(copies_.size()); }
  int ranks() const { return static_cast<int>(local_.size()); }
  /// Ranks that hold this expert, ascending.
  std::span<const int> copies(GlobalExpert expert) const { return copies_[static_cast<size_t>(index_of(expert))]; }
  /// Experts of a rank, ascending: LocalExpert i is element i.
  std::span<const GlobalExpert> local_experts(int rank) const { return local_[static_cast<size_t>(rank)]; }
  std::optional<LocalExpert> find_local(GlobalExpert expert, int rank) const;

  /// The rank that serves `expert` to the tokens of `home_rank`: home itself where it holds a copy. The other home ranks take
  /// the copies in turn, beginning with copy number expert mod copies. Fixed, so that every rank knows it without asking.
  int rank_for(GlobalExpert expert, int home_rank) const {
    return serving_[static_cast<size_t>(index_of(expert)) * local_.size() + static_cast<size_t>(home_rank)];
  }

  /// [ranks] predicted load of each rank when every rank is home to an equal share of the tokens; sums to the sum of `load`.
  std::vector<double> rank_load(std::span<const double> load) const;
  /// Largest rank load over the mean rank load; 1 is even. 1 when nothing is loaded.
  double max_over_mean(std::span<const double> load) const;

  /// Equal for equal placements; differs, but for a chance of 2^-64, otherwise.
  uint64_t fingerprint() const { return fingerprint_; }

 private:
  ExpertPlacement() = default;

  std::vector<std::vector<int>> copies_;          // [num_experts]
  std::vector<std::vector<GlobalExpert>> local_;  // [ranks]
  std::vector<int> serving_;                      // [num_experts, ranks]: rank_for(expert, home)
  std::vector<int32_t> local_index_;              // [num_experts, ranks]: LocalExpert or -1
  uint64_t fingerprint_ = 0;
};

}  // namespace cmoe

#include "moe/wire_model.h"

#include <vector>

#include "base/error.h"

namespace cmoe {

std::string_view name_of(Transport transport) { return transport == Transport::all_to_all ? "all_to_all" : "all_gather"; }

WireBytes& WireBytes::operator+=(const WireBytes& other) {
  counts += other.counts;
  ids += other.ids;
  rows += other.rows;
  partials += other.partials;
  return *this;
}

std::vector<int64_t> pairs_per_rank(const Routing& routing, const ExpertPlacement& placement, int home_rank) {
  std::vector<int64_t> pairs(static_cast<size_t>(placement.ranks()), 0);
  for (int32_t e : routing.expert_idx) ++pairs[static_cast<size_t>(placement.rank_for(GlobalExpert{e}, home_rank))];
  return pairs;
}

WireBytes wire_bytes(const Routing& routing, const ExpertPlacement& placement, int home_rank, Transport transport,
                     const WireFormat& format, int64_t partials_served) {
  const int64_t others = placement.ranks() - 1;
  WireBytes bytes;
  bytes.counts = others * kCountsPerPeer * 8;
  bytes.partials = partials_served * format.row_bytes();
  for (int64_t t = 0; t < routing.tokens(); ++t) {
    const auto experts = routing.experts(t);
    int64_t rows = others, ids = others * static_cast<int64_t>(experts.size());
    if (transport == Transport::all_to_all) {
      std::vector<bool> served_by(static_cast<size_t>(placement.ranks()), false);
      rows = ids = 0;
      for (int32_t e : experts) {
        const int rank = placement.rank_for(GlobalExpert{e}, home_rank);
        if (rank == home_rank) continue;
        ++ids;
        if (!served_by[static_cast<size_t>(rank)]) ++rows;
        served_by[static_cast<size_t>(rank)] = true;
      }
    }
    bytes.rows += rows * format.row_bytes();
    bytes.ids += 4 * (rows + ids);
  }
  return bytes;
}

WireBytes expected_wire_bytes(int64_t tokens, std::span<const double> size_probability, const ExpertPlacement& placement,
                              Transport transport, const WireFormat& format) {
  const int64_t n = placement.num_experts(), ranks = placement.ranks();
  CMOE_CHECK(static_cast<int64_t>(size_probability.size()) == n + 1,
             "expected_wire_bytes: {} probabilities; expected {}, one per number of experts from 0 to {}",
             size_probability.size(), n + 1, n);
  // Sums over one token of each home rank, then scaled to the tokens of a home rank.
  double rows = 0, pairs = 0, listed = 0;
  for (int home = 0; home < ranks; ++home) {
    std::vector<int64_t> served(static_cast<size_t>(ranks), 0);  // experts each rank serves to this home
    for (int32_t e = 0; e < n; ++e) ++served[static_cast<size_t>(placement.rank_for(GlobalExpert{e}, home))];
    for (int64_t k = 0; k <= n; ++k) {
      const double p = size_probability[static_cast<size_t>(k)];
      for (int rank = 0; rank < ranks; ++rank) {
        if (rank == home) continue;
        const int64_t m = served[static_cast<size_t>(rank)];
        if (n > 0) pairs += p * static_cast<double>(k * m) / static_cast<double>(n);
        if (transport == Transport::all_gather) {
          rows += p;
          listed += p * static_cast<double>(k);
          continue;
        }
        // A set of k of n misses m given experts with probability Π_i (n - m - i) / (n - i), i < k.
        double missed = 1;
        for (int64_t i = 0; i < k; ++i)
          missed *= static_cast<double>(std::max<int64_t>(0, n - m - i)) / static_cast<double>(n - i);
        rows += p * (1 - missed);
      }
    }
  }
  if (transport == Transport::all_to_all) listed = pairs;
  const double per_home = static_cast<double>(tokens) / static_cast<double>(ranks);
  const auto row_bytes = static_cast<double>(format.row_bytes());
  WireBytes bytes;
  bytes.counts = ranks * (ranks - 1) * kCountsPerPeer * 8;
  bytes.ids = static_cast<int64_t>(per_home * 4 * (rows + listed) + 0.5);
  bytes.rows = static_cast<int64_t>(per_home * rows * row_bytes + 0.5);
  bytes.partials = static_cast<int64_t>(per_home * pairs * row_bytes + 0.5);
  return bytes;
}

Transport choose_transport(int64_t all_to_all_bytes, int64_t all_gather_bytes) {
  const bool gather =
      all_to_all_bytes > 0 && static_cast<double>(all_gather_bytes) <= kAllGatherFactor * static_cast<double>(all_to_all_bytes);
  return gather ? Transport::all_gather : Transport::all_to_all;
}

double wire_seconds(const WireBytes& bytes, int ranks, const Link& link) {
  if (ranks <= 1) return 0;
  return 3.0 * (ranks - 1) * link.latency_seconds + static_cast<double>(bytes.total()) / link.bytes_per_second;
}

}  // namespace cmoe

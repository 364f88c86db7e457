#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "moe/placement.h"
#include "moe/routing.h"
#include "tensor/dtype.h"

namespace cmoe {

/// How rows travel to the ranks of their experts. Partial results return the same way under both: to the home rank, pairwise.
enum class Transport : uint8_t {
  all_to_all,  ///< a token goes once to each other rank that serves one of its experts, with the list of those experts
  all_gather,  ///< every token goes to every other rank, with the list of all its experts
};

std::string_view name_of(Transport transport);

/// Bytes one rank hands to the network for other ranks, one layer, forward. What stays on a rank is not counted.
struct WireBytes {
  int64_t counts = 0;    ///< the size exchange before the rows
  int64_t ids = 0;       ///< expert lists: 4 bytes per row (its length) and per (row, expert)
  int64_t rows = 0;      ///< dispatch: hidden_size elements per row
  int64_t partials = 0;  ///< combine: hidden_size elements per (token, remote expert)

  int64_t total() const { return counts + ids + rows + partials; }
  WireBytes& operator+=(const WireBytes& other);
  bool operator==(const WireBytes&) const = default;
};

/// Shape of what travels.
struct WireFormat {
  int64_t hidden_size = 0;
  DType dtype = DType::f32;  ///< of rows and partials: f32 or bf16

  int64_t row_bytes() const { return hidden_size * size_of(dtype); }
};

/// int64 values that each rank sends to each other one before the rows: moe/dispatch_plan.h, struct Counts.
inline constexpr int64_t kCountsPerPeer = 7;

/// Bytes that `home_rank` sends when its tokens are routed by `routing`, and that it returns for other ranks' tokens when
/// `partials_served` (token, expert) pairs of theirs are computed here. With R ranks, u_t = other ranks that serve an expert of
/// token t, k_t = experts of token t, r_t = those served elsewhere, and b bytes a row:
///
///   counts   = 8 * 7 * (R - 1)
///   ids      = Σ_t 4 (u_t + r_t)              all_to_all;   (R - 1) Σ_t 4 (1 + k_t)     all_gather
///   rows     = Σ_t u_t b                      all_to_all;   (R - 1) T b                 all_gather
///   partials = partials_served b
///
/// Source: the all-to-all volume with one copy per destination rank, for sets of any size per token. Partials are not summed on
/// the expert's rank, which would send u_t instead of r_t rows back: the sum would then depend on where experts live.
WireBytes wire_bytes(const Routing& routing, const ExpertPlacement& placement, int home_rank, Transport transport,
                     const WireFormat& format, int64_t partials_served);

/// The (token, expert) pairs of `routing`, at home on `home_rank`, that each rank serves: [ranks].
std::vector<int64_t> pairs_per_rank(const Routing& routing, const ExpertPlacement& placement, int home_rank);

/// Expected bytes over all ranks, for a plan before any routing is known: a token takes k experts with probability
/// size_probability[k], each set of k experts equally likely, tokens at home evenly on all ranks.
///
/// @param size_probability   [num_experts + 1], sums to 1
WireBytes expected_wire_bytes(int64_t tokens, std::span<const double> size_probability, const ExpertPlacement& placement,
                              Transport transport, const WireFormat& format);

/// All-gather moves each token to every rank in one regular message and packs it once; all-to-all moves only what is needed
/// but copies a row per destination. All-gather is chosen when it sends at most this factor times the bytes
/// (docs/performance.md).
inline constexpr double kAllGatherFactor = 1.1;

/// The transport with the lower cost for these dispatch bytes (ids + rows, summed over all ranks); all_to_all on a tie of
/// nothing to send.
Transport choose_transport(int64_t all_to_all_bytes, int64_t all_gather_bytes);

/// A link between two ranks.
struct Link {
  double latency_seconds = 0;   ///< per message
  double bytes_per_second = 0;  ///< per rank and direction
};

/// Expected time of counts, dispatch and combine of one layer on the rank that sends `bytes`: three rounds of messages to
/// ranks - 1 peers, then the bytes. No overlap with anything.
double wire_seconds(const WireBytes& bytes, int ranks, const Link& link);

}  // namespace cmoe

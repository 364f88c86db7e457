#pragma once

#include <array>
#include <span>
#include <vector>

#include "moe/dispatcher.h"

namespace cmoe {

/// What each rank tells each other one before the rows; all values are known before anything is received.
struct Counts {
  int64_t check;         ///< of hidden_size, wire type, kind and placement: must be equal on all ranks
  int64_t rows;          ///< rows for you, by all_to_all
  int64_t pairs;         ///< (row, expert) for you
  int64_t tokens;        ///< my tokens
  int64_t all_pairs;     ///< (token, expert) of all my tokens
  int64_t remote_rows;   ///< rows for all other ranks, by all_to_all
  int64_t remote_pairs;  ///< (row, expert) for all other ranks
};
static_assert(sizeof(Counts) == 8 * kCountsPerPeer);

/// A block on the wire: `rows` expert lists (length, then ids ascending: int32), then `rows` rows of the wire type. Blocks
/// follow each other without padding, so that ids may be unaligned; rows of bf16 are at even addresses since all parts are
/// even.
struct BlockSize {
  int64_t rows = 0;
  int64_t pairs = 0;

  int64_t id_bytes() const { return 4 * (rows + pairs); }
  int64_t bytes(const WireFormat& format) const { return id_bytes() + rows * format.row_bytes(); }
};

/// Where this rank's tokens go.
struct SendPlan {
  std::vector<int64_t> rows_to;       ///< [ranks] tokens with an expert there, this rank included
  std::vector<int64_t> pairs_to;      ///< [ranks]
  std::vector<int32_t> rank_of_pair;  ///< [pairs]
  std::vector<int64_t> turn_of_pair;  ///< [pairs] number among the pairs of the same rank
};

/// @throws Error on expert ids out of range, not ascending, or without a weight.
SendPlan plan_send(const Routing& routing, const ExpertPlacement& placement, int home_rank);

/// Writes all_to_all's block for each other rank to block[r].
void pack_per_rank(const Tensor& x, const Routing& routing, const SendPlan& plan, int home_rank, const WireFormat& format,
                   std::span<std::byte* const> block);
/// Writes all_gather's block: all tokens, all experts.
void pack_all(const Tensor& x, const Routing& routing, const WireFormat& format, std::byte* block);

/// The (row, expert) pairs this rank serves, in order of (home rank, token, expert).
class Arrivals {
 public:
  Arrivals(const ExpertPlacement& placement, int rank, const WireFormat& format)
      : placement_(placement), rank_(rank), format_(format) {}

  /// The pairs that stay at home: rows in f32.
  void add_own(const Tensor& x, const Routing& routing, const SendPlan& plan);
  /// A block of `home`. Pairs that other ranks serve are passed over. @throws Error when the block does not hold `size`, or not
  /// `expected_pairs` pairs for this rank.
  void add_block(int home, const std::byte* block, const BlockSize& size, int64_t expected_pairs);

  /// Begin of each home rank's pairs; one more at the end of each add_. [ranks + 1] when all are added.
  const std::vector<int64_t>& served_begin() const { return served_begin_; }
  int64_t count() const { return static_cast<int64_t>(expert_.size()); }

  /// Copies each pair's row to its place in `rows` [count, d]: stable by local expert. Fills row_of_served and expert_offset.
  void group(Tensor& rows, std::vector<int64_t>& expert_offset, std::vector<int64_t>& row_of_served) const;

 private:
  const ExpertPlacement& placement_;
  int rank_;
  WireFormat format_;
  std::vector<int64_t> served_begin_{0};
  std::vector<int32_t> expert_;          // [count] local expert
  std::vector<const std::byte*> row_;    // [count]
  int64_t own_begin_ = 0, own_end_ = 0;  // pairs whose row is f32, whatever the wire type
};

/// Rows from f32 to the wire type.
void to_wire(const float* row, std::byte* out, const WireFormat& format);

}  // namespace cmoe

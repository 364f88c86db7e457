#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "train/parameters.h"

namespace cmoe {

/// A flat vector is cut over ranks, and its squares are added, in chunks: every parameter by itself, at multiples of kSumChunk
/// elements. So sums of a chunk are the same whichever rank owns it and whatever else the rank holds.
inline constexpr int64_t kSumChunk = 4096;

/// The begin of every chunk, and the end of the last.
std::vector<int64_t> chunk_begins(const ParameterSet& parameters);
/// The elements of one rank: whole chunks, about as many elements as every other rank has.
std::pair<int64_t, int64_t> slice_of(std::span<const int64_t> chunk_begin, int rank, int ranks);

/// The sum of the sequences' gradients of one parameter set, each rank of a group that holds the set keeping its slice:
/// g_0 + g_1 + ..., added in the order of the sequences, in f32, whichever ranks they come from.
class GradientSum {
 public:
  /// @param parameters  the same on all ranks of `comm`, which must outlive this.
  GradientSum(const ParameterSet& parameters, Communicator& comm);

  void clear();
  /// Adds the first terms[r] of the gradients of each rank r: all of rank 0's, then all of rank 1's, ... Collective.
  /// @param terms  [ranks], the same on all of them. @param gradients  at least this rank's terms, each of the whole set.
  void add(std::span<const Tensor> gradients, std::span<const int64_t> terms);

  std::pair<int64_t, int64_t> slice() const { return slice_of(chunk_begin_, comm_.rank(), comm_.size()); }
  /// [slice size] of this rank.
  const Tensor& sum() const { return sum_; }
  /// Puts together every rank's slice of `values`, in place. Collective.
  void gather(const Tensor& values) const;

  /// The sum of the squares of one chunk of this rank's slice. `place` names the chunk in the model's layout.
  struct ChunkSquare {
    int64_t place;
    double square;
  };
  void append_squares(std::vector<ChunkSquare>& squares) const;

 private:
  Communicator& comm_;
  std::vector<int64_t> chunk_begin_;
  std::vector<int64_t> chunk_place_;  // in the model's layout
  Tensor sum_;
  std::vector<float> received_;
};

/// Square root of the sum of the squares that all ranks hold, added in the order of the model's layout: the same bits however
/// the chunks lie on ranks. Collective.
double norm_of(const std::vector<GradientSum::ChunkSquare>& mine, Communicator& comm);

}  // namespace cmoe

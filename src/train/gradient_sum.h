#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "tensor/tensor.h"

namespace cmoe {

/// Cuts a flat vector over ranks at multiples of kSumChunk elements, so that sums of a chunk are the same whoever owns it.
inline constexpr int64_t kSumChunk = 4096;
std::pair<int64_t, int64_t> slice_of(int64_t size, int rank, int ranks);

/// The sum of the sequences' gradients, each rank keeping its slice: g_0 + g_1 + ..., added in the order of the sequences, in
/// f32. Sequences go round the ranks, so any number of ranks gives the same bits.
class GradientSum {
 public:
  /// @param comm  must outlive this.
  GradientSum(int64_t size, Communicator& comm);

  void clear();
  /// Adds the gradients of `sequences` (<= ranks) sequences, the r-th from rank r. Collective: ranks beyond them pass any.
  void add(const Tensor& gradient, int64_t sequences);

  std::pair<int64_t, int64_t> slice() const { return slice_of(size_, comm_.rank(), comm_.size()); }
  /// [slice size] of this rank.
  const Tensor& sum() const { return sum_; }
  /// Square root of the sum of squares over all ranks; the same bits for any number of ranks. Collective.
  double norm() const;
  /// Puts together every rank's slice of `values`, in place. Collective.
  void gather(const Tensor& values) const;

 private:
  int64_t size_;
  Communicator& comm_;
  Tensor sum_;
  std::vector<float> received_;
};

}  // namespace cmoe

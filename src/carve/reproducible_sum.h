#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace cmoe {

class Communicator;

/// The largest value of each element over all ranks: bounds for ReproducibleSum. Collective.
/// @throws Error  when a value is negative or not finite, naming `what` and the element.
std::vector<double> agree_bounds(std::vector<double> local_max, Communicator& comm, const std::string& what);

/// A sum of matrices over the ranks of a group that is the same to the bit for any number of ranks and any order.
///
/// The terms ("chunks": partial results of fixed pieces of the data, computed alike whoever computes them) are rounded to
/// 64-bit fixed point and added as integers, which commutes. Element (i, j) has the unit
/// 2^-fraction_bits * row_scale[i] * column_scale[j], where the scales are the bounds rounded up to powers of two, and
/// fraction_bits = 61 - ceil(log2 total_chunks): each term is rounded by at most half a unit, and no sum can overflow.
///
/// Bounds: |chunk[i, j]| <= row_bound[i] * column_bound[j] up to rounding (a factor of two is left). For a Gram matrix use
/// row_bound[i] = column_bound[i] = sqrt of the largest diagonal element over all chunks.
class ReproducibleSum {
 public:
  /// @param row_bound, column_bound  finite, >= 0, the same on all ranks; a zero says that the row or column is zero.
  /// @param total_chunks             chunks of all ranks together; at most 2048, so that at least 50 bits remain.
  /// @param what                     the name of the sum in errors.
  ReproducibleSum(std::span<const double> row_bound, std::span<const double> column_bound, int64_t total_chunks,
                  std::string what);

  /// Adds one chunk, [rows, columns] row-major.
  /// @throws Error  for an element that is not finite or beyond its bound, naming sum, row and column.
  void add(std::span<const float> chunk) { add_chunk(chunk); }
  void add(std::span<const double> chunk) { add_chunk(chunk); }

  /// The sum over all ranks, [rows, columns]. Collective; call once.
  /// @throws Error  when the ranks together added another number of chunks than total_chunks.
  std::vector<double> finish(Communicator& comm);

  int fraction_bits() const { return fraction_bits_; }

 private:
  template <class T>
  void add_chunk(std::span<const T> chunk);

  std::string what_;
  int64_t total_chunks_;
  int fraction_bits_;
  std::vector<double> row_scale_, column_scale_;  // powers of two, or 0
  std::vector<int64_t> sum_;                      // [rows * columns], then the number of chunks added
};

/// The sum of vectors of one length over all ranks, by ReproducibleSum with each element's bound taken from the data.
/// Collective.
/// @param chunks  this rank's terms, each of `size` elements; a rank may have none.
std::vector<double> sum_reproducibly(std::span<const std::vector<double>> chunks, int64_t size, Communicator& comm,
                                     const std::string& what);

}  // namespace cmoe

#include "carve/reproducible_sum.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/error.h"
#include "base/parallel.h"
#include "comm/communicator.h"

namespace cmoe {
namespace {

constexpr int64_t kMaxChunks = 2048;

// The least power of two >= bound; 0 for 0.
double power_of_two_above(double bound) {
  if (bound == 0) return 0;
  int exponent;
  const double mantissa = std::frexp(bound, &exponent);  // bound = mantissa * 2^exponent, mantissa in [0.5, 1)
  return std::ldexp(1.0, mantissa == 0.5 ? exponent - 1 : exponent);
}

std::vector<double> scales_of(std::span<const double> bounds, const std::string& what, const char* axis) {
  std::vector<double> scales;
  scales.reserve(bounds.size());
  for (double bound : bounds) {
    // Beyond these exponents a product of two scales and its inverse are no longer normal doubles.
    CMOE_CHECK(bound == 0 || (bound >= 0x1p-400 && bound <= 0x1p400),
               "{}: the bound of {} {} is {}, expected 0 or a value between 2^-400 and 2^400", what, axis, scales.size(),
               bound);
    scales.push_back(power_of_two_above(bound));
  }
  return scales;
}

}  // namespace

std::vector<double> agree_bounds(std::vector<double> local_max, Communicator& comm, const std::string& what) {
  for (size_t i = 0; i < local_max.size(); ++i) {
    CMOE_CHECK(std::isfinite(local_max[i]) && local_max[i] >= 0,
               "{}: the largest magnitude of element {} is {} on rank {}, expected a finite number; are there NaN or infinite "
               "weights?",
               what, i, local_max[i], comm.rank());
  }
  comm.all_reduce_max(std::span<double>(local_max));
  return local_max;
}

ReproducibleSum::ReproducibleSum(std::span<const double> row_bound, std::span<const double> column_bound, int64_t total_chunks,
                                 std::string what)
    : what_(std::move(what)),
      total_chunks_(total_chunks),
      row_scale_(scales_of(row_bound, what_, "row")),
      column_scale_(scales_of(column_bound, what_, "column")) {
  CMOE_CHECK(total_chunks >= 0 && total_chunks <= kMaxChunks,
             "{}: {} chunks, expected 0 to {} so that the sum keeps 50 bits; use larger chunks", what_, total_chunks,
             kMaxChunks);
  // One bit for terms up to twice their bound, ceil(log2 chunks) for the sum, one for the sign, one to spare.
  fraction_bits_ = 61 - static_cast<int>(std::bit_width(static_cast<uint64_t>(std::max<int64_t>(total_chunks, 1) - 1)));
  sum_.assign(row_scale_.size() * column_scale_.size() + 1, 0);
}

template <class T>
void ReproducibleSum::add_chunk(std::span<const T> chunk) {
  const auto rows = static_cast<int64_t>(row_scale_.size()), columns = static_cast<int64_t>(column_scale_.size());
  CMOE_CHECK(static_cast<int64_t>(chunk.size()) == rows * columns, "{}: a chunk has {} elements, expected {} x {}", what_,
             chunk.size(), rows, columns);
  const double unit = std::ldexp(1.0, fraction_bits_), limit = 2 * unit;
  std::vector<double> inverse(column_scale_);
  for (double& scale : inverse) scale = scale == 0 ? 0 : 1 / scale;
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(columns, 1));
  parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const double row_factor = row_scale_[i] == 0 ? 0 : unit / row_scale_[i];
      const T* in = chunk.data() + i * columns;
      int64_t* out = sum_.data() + i * columns;
      for (int64_t j = 0; j < columns; ++j) {
        const auto value = static_cast<double>(in[j]);
        const double factor = row_factor * inverse[j];  // a power of two: the product below is exact
        const double fixed = value * factor;
        if (!(std::abs(fixed) <= limit) || (factor == 0 && value != 0)) {  // written so that NaN is caught
          CMOE_CHECK(std::isfinite(value),
                     "{}: element [{}, {}] is {}, expected a finite number; are there NaN or infinite weights?", what_, i, j,
                     value);
          fail_internal("{}: element [{}, {}] is {}, expected at most its bound {} x {}", what_, i, j, value, row_scale_[i],
                        column_scale_[j]);
        }
        out[j] += std::llrint(fixed);
      }
    }
  });
  ++sum_.back();
}

template void ReproducibleSum::add_chunk(std::span<const float>);
template void ReproducibleSum::add_chunk(std::span<const double>);

std::vector<double> ReproducibleSum::finish(Communicator& comm) {
  comm.all_reduce_sum(std::span<int64_t>(sum_));
  if (sum_.back() != total_chunks_) {
    fail_internal("{}: the ranks added {} chunks, expected {}", what_, sum_.back(), total_chunks_);
  }
  std::vector<double> result(sum_.size() - 1);
  const size_t columns = column_scale_.size();
  for (size_t i = 0; i < result.size(); ++i) {
    result[i] =
        std::ldexp(static_cast<double>(sum_[i]), -fraction_bits_) * (row_scale_[i / columns] * column_scale_[i % columns]);
  }
  return result;
}

std::vector<double> sum_reproducibly(std::span<const std::vector<double>> chunks, int64_t size, Communicator& comm,
                                     const std::string& what) {
  std::vector<double> bound(static_cast<size_t>(size), 0.0);
  for (const std::vector<double>& chunk : chunks) {
    CMOE_CHECK(static_cast<int64_t>(chunk.size()) == size, "{}: a chunk has {} elements, expected {}", what, chunk.size(),
               size);
    for (int64_t i = 0; i < size; ++i) {
      CMOE_CHECK(std::isfinite(chunk[i]), "{}: element {} of a chunk is {} on rank {}, expected a finite number", what, i,
                 chunk[i], comm.rank());
      bound[i] = std::max(bound[i], std::abs(chunk[i]));
    }
  }
  bound = agree_bounds(std::move(bound), comm, what);
  auto total = static_cast<int64_t>(chunks.size());
  comm.all_reduce_sum(std::span(&total, 1));
  ReproducibleSum sum(std::vector<double>{1.0}, bound, total, what);
  for (const std::vector<double>& chunk : chunks) sum.add(std::span<const double>(chunk));
  return sum.finish(comm);
}

}  // namespace cmoe

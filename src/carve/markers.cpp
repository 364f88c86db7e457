#include "carve/markers.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "backend/host_rows.h"
#include "base/error.h"
#include "base/parallel.h"

namespace cmoe {
namespace {

// |h| as bits: order and equality of magnitudes are those of the integers, and NaN comes above infinity.
constexpr int32_t kInfinityBits = 0x7f800000;
inline int32_t magnitude_bits(float value) { return std::bit_cast<int32_t>(value) & 0x7fffffff; }

struct Scratch {
  std::vector<int32_t> maxima, candidate, magnitude;
};

// Writes the k marks of one row; returns false when the row holds a NaN.
//
// The k-th largest of the maxima of `slices` disjoint slices is reached by at least k elements, so it bounds the k-th largest
// element from below: one pass for the maxima, one that keeps the few elements not below the bound and finds the row in the
// cache.
bool mark_row(const float* h, int64_t neurons, int64_t k, int64_t slices, Scratch& scratch, int32_t* out) {
  std::vector<int32_t>& maxima = scratch.maxima;
  maxima.resize(static_cast<size_t>(slices));
  slice_maxima(h, neurons, slices, maxima.data());
  std::nth_element(maxima.begin(), maxima.begin() + (k - 1), maxima.end(), std::greater<>());
  const int32_t bound = maxima[static_cast<size_t>(k - 1)];
  if (*std::max_element(maxima.begin(), maxima.begin() + k) > kInfinityBits) return false;

  std::vector<int32_t>& candidate = scratch.candidate;
  candidate.resize(static_cast<size_t>(neurons));
  candidate.resize(static_cast<size_t>(list_magnitudes(h, neurons, bound, candidate.data())));

  if (static_cast<int64_t>(candidate.size()) > k) {
    // The k-th largest magnitude; all above it are marked, and of those equal to it the first ones.
    std::vector<int32_t>& magnitude = scratch.magnitude;
    magnitude.clear();
    for (int32_t c : candidate) magnitude.push_back(magnitude_bits(h[c]));
    std::nth_element(magnitude.begin(), magnitude.begin() + (k - 1), magnitude.end(), std::greater<>());
    const int32_t least = magnitude[static_cast<size_t>(k - 1)];
    int64_t equal = k - std::count_if(magnitude.begin(), magnitude.begin() + k, [&](int32_t m) { return m > least; });
    std::erase_if(candidate, [&](int32_t c) {
      const int32_t bits = magnitude_bits(h[c]);
      return bits < least || (bits == least && equal-- <= 0);
    });
  }
  std::copy(candidate.begin(), candidate.end(), out);
  return true;
}

}  // namespace

void mark_top_k(const float* h, int64_t tokens, int64_t neurons, int64_t k_act, int32_t* out, int64_t first_token) {
  CMOE_CHECK(k_act >= 1 && k_act <= neurons, "mark_top_k: k_act is {}, expected 1 to {} (the number of neurons)", k_act,
             neurons);
  // About four slices a mark keep the bound tight; never more slices than neurons.
  const auto slices =
      std::min(neurons, std::max<int64_t>(64, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(4 * k_act)))));
  parallel_for(tokens, 64, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    for (int64_t t = begin; t < end; ++t) {
      const float* row = h + t * neurons;
      if (mark_row(row, neurons, k_act, slices, scratch, out + t * k_act)) continue;
      const auto neuron = std::find_if(row, row + neurons, [](float value) { return std::isnan(value); }) - row;
      fail("mark_top_k: the activation of token {}, neuron {} is NaN, expected a number; are there NaN weights?",
           first_token + t, neuron);
    }
  });
}

Tensor normalize_rows(const Tensor& rows) {
  CMOE_CHECK(rows.shape().size() == 2, "normalize_rows: a tensor of shape {}, expected [rows, columns]",
             to_string(rows.shape()));
  const Tensor source = rows.to(DType::f32);
  Tensor result(DType::f32, source.shape());
  const int64_t columns = source.dim(1);
  parallel_for(source.dim(0), 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* in = source.row<float>(r);
      float* out = result.row<float>(r);
      double sum = 0;
      for (int64_t c = 0; c < columns; ++c) sum += static_cast<double>(in[c]) * in[c];
      const auto norm = static_cast<float>(std::max(std::sqrt(sum), 1e-12));
      for (int64_t c = 0; c < columns; ++c) out[c] = in[c] / norm;
    }
  });
  return result;
}

std::vector<int64_t> count_marks(std::span<const int32_t> marks, int64_t neurons) {
  std::vector<int64_t> count(static_cast<size_t>(neurons), 0);
  for (int32_t neuron : marks) {
    CMOE_CHECK(neuron >= 0 && neuron < neurons, "count_marks: a mark on neuron {}, expected 0 to {}", neuron, neurons - 1);
    ++count[static_cast<size_t>(neuron)];
  }
  return count;
}

SparseBits select_marks(std::span<const int32_t> marks, int64_t k_act, int64_t neurons, std::span<const int32_t> candidates) {
  CMOE_CHECK(k_act >= 1 && static_cast<int64_t>(marks.size()) % k_act == 0,
             "select_marks: {} marks, expected a multiple of k_act = {}", marks.size(), k_act);
  std::vector<int32_t> position(static_cast<size_t>(neurons), -1);
  int32_t previous = -1;
  for (size_t c = 0; c < candidates.size(); ++c) {
    CMOE_CHECK(candidates[c] > previous && candidates[c] < neurons,
               "select_marks: candidate {} is neuron {} after neuron {}, expected ascending neurons below {}", c, candidates[c],
               previous, neurons);
    previous = candidates[c];
    position[static_cast<size_t>(candidates[c])] = static_cast<int32_t>(c);
  }
  SparseBits bits;
  bits.rows = static_cast<int64_t>(marks.size()) / k_act;
  bits.columns = static_cast<int64_t>(candidates.size());
  bits.row_begin.reserve(static_cast<size_t>(bits.rows + 1));
  bits.row_begin.push_back(0);
  for (int64_t t = 0; t < bits.rows; ++t) {
    for (int64_t k = 0; k < k_act; ++k) {
      const int32_t neuron = marks[t * k_act + k];
      CMOE_CHECK(neuron >= 0 && neuron < neurons, "select_marks: token {} marks neuron {}, expected 0 to {}", t, neuron,
                 neurons - 1);
      if (position[static_cast<size_t>(neuron)] >= 0) bits.column.push_back(position[static_cast<size_t>(neuron)]);
    }
    bits.row_begin.push_back(static_cast<int64_t>(bits.column.size()));
  }
  return bits;
}

SparseBits transpose(const SparseBits& bits) {
  SparseBits result;
  result.rows = bits.columns;
  result.columns = bits.rows;
  result.row_begin.assign(static_cast<size_t>(bits.columns + 1), 0);
  for (int32_t c : bits.column) ++result.row_begin[static_cast<size_t>(c) + 1];
  std::partial_sum(result.row_begin.begin(), result.row_begin.end(), result.row_begin.begin());
  result.column.resize(bits.column.size());
  std::vector<int64_t> next(result.row_begin.begin(), result.row_begin.end() - 1);
  for (int64_t r = 0; r < bits.rows; ++r) {
    for (int32_t c : bits.row(r)) result.column[static_cast<size_t>(next[static_cast<size_t>(c)]++)] = static_cast<int32_t>(r);
  }
  return result;
}

}  // namespace cmoe

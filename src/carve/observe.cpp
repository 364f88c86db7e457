#include "carve/observe.h"

#include <algorithm>
#include <cmath>

#include "base/parallel.h"
#include "carve/markers.h"
#include "carve/token_sums.h"

namespace cmoe {
namespace {

std::vector<float> row_lengths(const Tensor& matrix) {
  const int64_t columns = matrix.dim(1);
  std::vector<float> lengths(static_cast<size_t>(matrix.dim(0)));
  parallel_for(matrix.dim(0), 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* row = matrix.row<float>(i);
      constexpr int64_t kSums = 8;  // side by side: one sum would wait for each of its additions
      double sums[kSums] = {};
      int64_t j = 0;
      for (; j + kSums <= columns; j += kSums) {
        for (int64_t k = 0; k < kSums; ++k) sums[k] += static_cast<double>(row[j + k]) * row[j + k];
      }
      for (; j < columns; ++j) sums[j % kSums] += static_cast<double>(row[j]) * row[j];
      double square = 0;
      for (double sum : sums) square += sum;
      // A row of zeros stays zero when normalised, as torch's F.normalize leaves it.
      lengths[static_cast<size_t>(i)] = std::max(static_cast<float>(std::sqrt(square)), 1e-12f);
    }
  });
  return lengths;
}

std::vector<float> inverse_lengths(const Tensor& matrix) {
  std::vector<float> factors = row_lengths(matrix);
  for (float& factor : factors) factor = 1.0f / factor;
  return factors;
}

// gate, up [T, f] become those of unit vectors: divided by |x_t| and the length of the weight row.
void normalize_products(const ObservedFfn& ffn, const Tensor& input, Tensor& gate, Tensor& up) {
  const std::vector<float> x_length = row_lengths(input);
  parallel_for(input.dim(0), 32, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float scale = 1.0f / x_length[static_cast<size_t>(t)];
      float* g = gate.row<float>(t);
      float* u = up.row<float>(t);
      for (size_t i = 0; i < ffn.gate_factor.size(); ++i) {
        g[i] *= scale * ffn.gate_factor[i];
        u[i] *= scale * ffn.up_factor[i];
      }
    }
  });
}

}  // namespace

ObservedFfn::ObservedFfn(const Backend& backend, const DenseFfnTensors& dense, DType dtype)
    : ffn{.gate = backend.prepare(dense.gate, dtype),
          .up = backend.prepare(dense.up, dtype),
          .down = backend.prepare(dense.down, dtype)},
      gate_factor(inverse_lengths(dense.gate)),
      up_factor(inverse_lengths(dense.up)) {}

FfnActivations observe_ffn(const Backend& backend, const ObservedFfn& ffn, const Tensor& input, int64_t k_act,
                           std::span<const Marker> markers) {
  const int64_t tokens = input.dim(0), f = ffn.ffn.neurons();
  constexpr int64_t kBlock = 256;  // tokens whose gate and up are held beside h, in a cache
  const auto wants = [&](Marker marker) { return std::find(markers.begin(), markers.end(), marker) != markers.end(); };
  FfnActivations result{.h = Tensor(DType::f32, {tokens, f})};
  if (wants(Marker::raw)) result.raw_markers.resize(static_cast<size_t>(tokens * k_act));
  if (wants(Marker::normalized)) result.normalized_markers.resize(static_cast<size_t>(tokens * k_act));
  Tensor gate(DType::f32, {std::min(tokens, kBlock), f});
  Tensor up(DType::f32, gate.shape());
  for (int64_t begin = 0; begin < tokens; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, tokens);
    const Tensor x = input.rows(begin, end);
    Tensor g = gate.rows(0, end - begin), u = up.rows(0, end - begin), h = result.h.rows(begin, end);
    backend.linear(x, ffn.ffn.gate, g);
    backend.linear(x, ffn.ffn.up, u);
    backend.swiglu(g, u, h);
    if (wants(Marker::raw))
      mark_top_k(h.data<float>(), end - begin, f, k_act, result.raw_markers.data() + begin * k_act, begin);
    if (wants(Marker::normalized)) {
      normalize_products(ffn, x, g, u);
      backend.swiglu(g, u, g);
      mark_top_k(g.data<float>(), end - begin, f, k_act, result.normalized_markers.data() + begin * k_act, begin);
    }
  }
  return result;
}

void add_down(const Backend& backend, const ObservedFfn& ffn, const Tensor& h, Tensor& y) {
  backend.linear(h, ffn.ffn.down, y, /*accumulate=*/true);
}

std::vector<int64_t> count_markers(std::span<const int32_t> markers, int64_t neurons, Communicator& comm) {
  std::vector<int64_t> count = count_marks(markers, neurons);
  comm.all_reduce_sum(count);
  return count;
}

NeuronStatistics neuron_statistics(const Tensor& h, const TokenChunks& chunks, Communicator& comm) {
  const int64_t f = h.dim(1);
  // One pass: sums of h, h^2 and |h|, side by side.
  const std::vector<double> sums = sum_over_tokens(3 * f, chunks, comm, [&](int64_t begin, int64_t end, std::span<double> out) {
    parallel_for(f, 128, [&](int64_t first, int64_t last) {
      for (int64_t t = begin; t < end; ++t) {
        const float* row = h.row<float>(t);
        for (int64_t i = first; i < last; ++i) {
          const double value = row[i];
          out[static_cast<size_t>(i)] += value;
          out[static_cast<size_t>(f + i)] += value * value;
          out[static_cast<size_t>(2 * f + i)] += std::abs(value);
        }
      }
    });
  });
  NeuronStatistics statistics{.tokens = chunks.total_tokens};
  const auto tokens = static_cast<double>(chunks.total_tokens);
  for (int64_t i = 0; i < f; ++i) {
    statistics.mean.push_back(sums[static_cast<size_t>(i)] / tokens);
    statistics.second_moment.push_back(sums[static_cast<size_t>(f + i)] / tokens);
    statistics.mean_abs.push_back(sums[static_cast<size_t>(2 * f + i)] / tokens);
  }
  return statistics;
}

}  // namespace cmoe

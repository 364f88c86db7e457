#pragma once

#include <cmath>
#include <memory>
#include <random>

#include "carve/layer.h"
#include "carve/markers.h"
#include "carve/observe.h"
#include "data/windows.h"

namespace cmoe {

/// Uniform numbers in [-1, 1), the same on every standard library.
inline Tensor random_tensor(const Shape& shape, uint64_t seed) {
  std::mt19937_64 random(seed);
  Tensor tensor(DType::f32, shape);
  for (float& v : tensor.span<float>()) v = static_cast<float>(random() >> 40) * 0x1p-23f - 1.0f;
  return tensor;
}

/// A dense FFN and calibration tokens, small enough to compute everything again by hand: d inputs, f neurons, and fewer
/// sequences than a test has ranks. Neurons differ in strength, so that scores do.
struct SmallLayer {
  int64_t d = 12, f = 48, sequences = 3, length = 40, k_act = 5;
  std::shared_ptr<const Backend> backend = make_cpu_backend();
  DenseFfnTensors dense;
  Tensor input;  ///< [sequences * length, d] tokens of all ranks

  SmallLayer() {
    dense = {.gate = random_tensor({f, d}, 1), .up = random_tensor({f, d}, 2), .down = random_tensor({d, f}, 3)};
    input = random_tensor({sequences * length, d}, 4);
    for (int64_t i = 0; i < f; ++i) {
      for (int64_t j = 0; j < d; ++j)
        dense.up.row<float>(i)[j] *= 0.2f + static_cast<float>(i * 37 % f) / static_cast<float>(f);
    }
    for (int64_t t = 0; t < input.dim(0); ++t) input.row<float>(t)[0] += 0.5f;  // inputs have a mean
  }

  int64_t tokens() const { return sequences * length; }

  /// What this rank of the group sees of it.
  LayerActivations activations(const Communicator& comm, Marker marker = Marker::raw) const {
    const auto [begin, end] = shard_of(sequences, comm.rank(), comm.size());
    LayerActivations result{.input = input.rows(begin * length, end * length),
                            .k_act = k_act,
                            .chunks = TokenChunks::of_sequences(end - begin, sequences, length)};
    FfnActivations seen =
        observe_ffn(*backend, ObservedFfn(*backend, dense, DType::f32), result.input, k_act, std::span(&marker, 1));
    result.h = seen.h;
    result.markers = marker == Marker::raw ? seen.raw_markers : seen.normalized_markers;
    return result;
  }

  NeuronStatistics statistics(const LayerActivations& activations, Communicator& comm) const {
    NeuronStatistics result = neuron_statistics(activations.h, activations.chunks, comm);
    result.marked = count_markers(activations.markers, f, comm);
    return result;
  }

  /// h of all tokens in f64, [tokens][f].
  std::vector<std::vector<double>> plain_h() const {
    std::vector<std::vector<double>> h(static_cast<size_t>(tokens()), std::vector<double>(static_cast<size_t>(f)));
    for (int64_t t = 0; t < tokens(); ++t) {
      for (int64_t i = 0; i < f; ++i) {
        double g = 0, u = 0;
        for (int64_t j = 0; j < d; ++j) {
          const double x = input.row<float>(t)[j];
          g += x * dense.gate.row<float>(i)[j];
          u += x * dense.up.row<float>(i)[j];
        }
        h[static_cast<size_t>(t)][static_cast<size_t>(i)] = g / (1 + std::exp(-g)) * u;
      }
    }
    return h;
  }
};

/// Bytes of a tensor, for comparisons to the bit.
inline std::string bytes_of(const Tensor& tensor) {
  return {static_cast<const char*>(tensor.raw()), static_cast<size_t>(tensor.bytes())};
}

}  // namespace cmoe

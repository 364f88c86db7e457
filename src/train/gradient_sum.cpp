#include "train/gradient_sum.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/parallel.h"

namespace cmoe {

std::pair<int64_t, int64_t> slice_of(int64_t size, int rank, int ranks) {
  const int64_t chunks = (size + kSumChunk - 1) / kSumChunk;
  const auto cut = [&](int64_t r) { return std::min(size, chunks * r / ranks * kSumChunk); };
  return {cut(rank), cut(rank + 1)};
}

GradientSum::GradientSum(int64_t size, Communicator& comm) : size_(size), comm_(comm) {
  const auto [begin, end] = slice();
  sum_ = Tensor::zeros(DType::f32, {end - begin});
}

void GradientSum::clear() { std::fill(sum_.span<float>().begin(), sum_.span<float>().end(), 0.0f); }

void GradientSum::add(const Tensor& gradient, int64_t sequences) {
  if (sequences < 0 || sequences > comm_.size()) fail_internal("gradients: {} sequences on {} ranks", sequences, comm_.size());
  const int64_t mine = sum_.size();
  const float* terms = gradient.data<float>();
  if (comm_.size() > 1) {
    std::vector<int64_t> send(static_cast<size_t>(comm_.size())), receive(send.size());
    for (int r = 0; r < comm_.size(); ++r) {
      const auto [begin, end] = slice_of(size_, r, comm_.size());
      send[static_cast<size_t>(r)] = comm_.rank() < sequences ? end - begin : 0;
      receive[static_cast<size_t>(r)] = r < sequences ? mine : 0;
    }
    received_.resize(static_cast<size_t>(mine * sequences));
    comm_.all_to_all_v(gradient.data<float>(), send, received_.data(), receive, sizeof(float));
    terms = received_.data();
  }
  float* sum = sum_.data<float>();
  parallel_for(mine, kSumChunk, [&](int64_t begin, int64_t end) {
    for (int64_t s = 0; s < sequences; ++s) {
      const float* term = terms + s * mine;
      for (int64_t i = begin; i < end; ++i) sum[i] += term[i];
    }
  });
}

double GradientSum::norm() const {
  std::vector<double> squares(static_cast<size_t>((sum_.size() + kSumChunk - 1) / kSumChunk));
  for (size_t c = 0; c < squares.size(); ++c) {
    const int64_t begin = static_cast<int64_t>(c) * kSumChunk, end = std::min(sum_.size(), begin + kSumChunk);
    for (int64_t i = begin; i < end; ++i) {
      const auto value = static_cast<double>(sum_.data<float>()[i]);
      squares[c] += value * value;
    }
  }
  double total = 0;
  for (double square : comm_.all_gather_v<double>(squares)) total += square;
  return std::sqrt(total);
}

void GradientSum::gather(const Tensor& values) const {
  if (comm_.size() == 1) return;
  const auto [begin, end] = slice();
  const std::vector<float> all =
      comm_.all_gather_v<float>(std::span<const float>(values.data<float>() + begin, static_cast<size_t>(end - begin)));
  std::memcpy(values.raw(), all.data(), all.size() * sizeof(float));
}

}  // namespace cmoe

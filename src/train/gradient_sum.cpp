#include "train/gradient_sum.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/error.h"
#include "base/parallel.h"

namespace cmoe {

std::vector<int64_t> chunk_begins(const ParameterSet& parameters) {
  std::vector<int64_t> begins;
  for (const Parameter& parameter : parameters.all()) {
    for (int64_t at = 0; at < parameter.size; at += kSumChunk) begins.push_back(parameter.offset + at);
  }
  begins.push_back(parameters.size());
  return begins;
}

std::pair<int64_t, int64_t> slice_of(std::span<const int64_t> chunk_begin, int rank, int ranks) {
  const int64_t size = chunk_begin.back();
  const auto cut = [&](int64_t r) { return *std::lower_bound(chunk_begin.begin(), chunk_begin.end(), size * r / ranks); };
  return {cut(rank), cut(rank + 1)};
}

GradientSum::GradientSum(const ParameterSet& parameters, Communicator& comm)
    : comm_(comm), chunk_begin_(chunk_begins(parameters)) {
  for (const Parameter& parameter : parameters.all()) {
    for (int64_t at = 0; at < parameter.size; at += kSumChunk) chunk_place_.push_back(parameter.place + at);
  }
  const auto [begin, end] = slice();
  sum_ = Tensor::zeros(DType::f32, {end - begin});
}

void GradientSum::clear() { std::fill(sum_.span<float>().begin(), sum_.span<float>().end(), 0.0f); }

void GradientSum::add(std::span<const Tensor> gradients, std::span<const int64_t> terms) {
  const auto ranks = static_cast<size_t>(comm_.size()), me = static_cast<size_t>(comm_.rank());
  if (terms.size() != ranks || static_cast<int64_t>(gradients.size()) < terms[me])
    fail_internal("gradients: {} numbers of terms for {} ranks, {} gradients here", terms.size(), ranks, gradients.size());
  if (chunk_place_.empty()) return;  // so on all ranks of the group
  const int64_t mine = sum_.size();
  std::vector<int64_t> first(ranks);  // number of each rank's first term
  std::exclusive_scan(terms.begin(), terms.end(), first.begin(), int64_t{0});
  std::vector<const float*> term(static_cast<size_t>(first.back() + terms.back()));
  if (ranks == 1) {
    for (size_t i = 0; i < term.size(); ++i) term[i] = gradients[i].data<float>();
  } else {
    received_.resize(static_cast<size_t>(mine) * term.size());
    float* to = received_.data();
    const int64_t turns = *std::max_element(terms.begin(), terms.end());
    for (int64_t turn = 0; turn < turns; ++turn) {  // the turn-th term of each rank that has one
      std::vector<int64_t> send(ranks), receive(ranks);
      for (size_t r = 0; r < ranks; ++r) {
        const auto [begin, end] = slice_of(chunk_begin_, static_cast<int>(r), comm_.size());
        send[r] = turn < terms[me] ? end - begin : 0;
        receive[r] = turn < terms[r] ? mine : 0;
      }
      const void* from = turn < terms[me] ? gradients[static_cast<size_t>(turn)].raw() : nullptr;
      comm_.all_to_all_v(from, send, to, receive, sizeof(float));
      for (size_t r = 0; r < ranks; ++r) {
        if (turn >= terms[r]) continue;
        term[static_cast<size_t>(first[r] + turn)] = to;
        to += mine;
      }
    }
  }
  float* sum = sum_.data<float>();
  parallel_for(mine, kSumChunk, [&](int64_t begin, int64_t end) {
    for (const float* values : term) {
      for (int64_t i = begin; i < end; ++i) sum[i] += values[i];
    }
  });
}

void GradientSum::append_squares(std::vector<ChunkSquare>& squares) const {
  const auto [slice_begin, slice_end] = slice();
  for (size_t c = 0; c < chunk_place_.size(); ++c) {
    if (chunk_begin_[c] < slice_begin || chunk_begin_[c] >= slice_end) continue;
    double square = 0;
    for (int64_t i = chunk_begin_[c] - slice_begin; i < chunk_begin_[c + 1] - slice_begin; ++i) {
      const auto value = static_cast<double>(sum_.data<float>()[i]);
      square += value * value;
    }
    squares.push_back({chunk_place_[c], square});
  }
}

void GradientSum::gather(const Tensor& values) const {
  if (comm_.size() == 1 || chunk_place_.empty()) return;
  const auto [begin, end] = slice();
  const std::vector<float> all =
      comm_.all_gather_v<float>(std::span<const float>(values.data<float>() + begin, static_cast<size_t>(end - begin)));
  std::memcpy(values.raw(), all.data(), all.size() * sizeof(float));
}

double norm_of(const std::vector<GradientSum::ChunkSquare>& mine, Communicator& comm) {
  std::vector<GradientSum::ChunkSquare> all = comm.all_gather_v<GradientSum::ChunkSquare>(mine);
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.place < b.place; });
  double total = 0;
  for (const auto& chunk : all) total += chunk.square;
  return std::sqrt(total);
}

}  // namespace cmoe

#include "carve/token_sums.h"

#include "base/parallel.h"
#include "carve/reproducible_sum.h"

namespace cmoe {
std::vector<double> sum_over_tokens(int64_t size, const TokenChunks& chunks, Communicator& comm,
                                    const std::function<void(int64_t begin, int64_t end, std::span<double> out)>& terms) {
  std::vector<std::vector<double>> partial;
  for (size_t c = 0; c < static_cast<size_t>(chunks.local_chunks()); ++c) {
    partial.emplace_back(static_cast<size_t>(size), 0.0);
    terms(chunks.begin[c], chunks.begin[c + 1], partial.back());
  }
  return sum_reproducibly(partial, size, comm, "sum over tokens");
}

std::vector<double> column_sums(const Tensor& a, const TokenChunks& chunks, Communicator& comm) {
  return sum_over_tokens(a.dim(1), chunks, comm, [&](int64_t begin, int64_t end, std::span<double> out) {
    parallel_for(a.dim(1), 256, [&](int64_t first, int64_t last) {
      for (int64_t t = begin; t < end; ++t) {
        const float* row = a.row<float>(t);
        for (int64_t i = first; i < last; ++i) out[static_cast<size_t>(i)] += row[i];
      }
    });
  });
}

}  // namespace cmoe

#include "carve/token_sums.h"

#include <algorithm>
#include <cmath>

#include "base/parallel.h"
#include "carve/reproducible_sum.h"

namespace cmoe {
namespace {

// For every column of `a`, the largest over all pieces of sqrt(sum of squares): |sum_t a_ti b_tj| <= bound_i(a) bound_j(b).
std::vector<double> column_bounds(const Tensor& a, const TokenChunks& chunks, Communicator& comm) {
  const auto columns = static_cast<size_t>(a.dim(1));
  std::vector<double> bound(columns, 0.0), square(columns);
  for (size_t c = 0; c < static_cast<size_t>(chunks.local_chunks()); ++c) {
    parallel_for(a.dim(1), 256, [&](int64_t first, int64_t last) {
      std::fill(square.begin() + first, square.begin() + last, 0.0);
      for (int64_t t = chunks.begin[c]; t < chunks.begin[c + 1]; ++t) {
        const float* row = a.row<float>(t);
        for (int64_t i = first; i < last; ++i) square[static_cast<size_t>(i)] += static_cast<double>(row[i]) * row[i];
      }
      for (int64_t i = first; i < last; ++i) {
        bound[static_cast<size_t>(i)] = std::max(bound[static_cast<size_t>(i)], std::sqrt(square[static_cast<size_t>(i)]));
      }
    });
  }
  return agree_bounds(std::move(bound), comm, "column lengths");
}

}  // namespace

std::vector<double> sum_over_tokens(int64_t size, const TokenChunks& chunks, Communicator& comm,
                                    const std::function<void(int64_t begin, int64_t end, std::span<double> out)>& terms) {
  std::vector<std::vector<double>> partial;
  for (size_t c = 0; c < static_cast<size_t>(chunks.local_chunks()); ++c) {
    partial.emplace_back(static_cast<size_t>(size), 0.0);
    terms(chunks.begin[c], chunks.begin[c + 1], partial.back());
  }
  return sum_reproducibly(partial, size, comm, "sum over tokens");
}

std::vector<double> gram(const Backend& backend, const Tensor& a, const Tensor& b, const TokenChunks& chunks,
                         Communicator& comm) {
  const std::vector<double> row_bound = column_bounds(a, chunks, comm);
  // By name, not by storage: a rank without tokens must take the same way as the others.
  const std::vector<double> column_bound = &a == &b ? row_bound : column_bounds(b, chunks, comm);
  ReproducibleSum sum(row_bound, column_bound, chunks.total_chunks, "Gram matrix");
  Tensor product(DType::f32, {a.dim(1), b.dim(1)});
  for (size_t c = 0; c < static_cast<size_t>(chunks.local_chunks()); ++c) {
    backend.multiply_transposed(a.rows(chunks.begin[c], chunks.begin[c + 1]), b.rows(chunks.begin[c], chunks.begin[c + 1]),
                                product);
    sum.add(product.span<float>());
  }
  return sum.finish(comm);
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

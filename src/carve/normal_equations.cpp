#include "carve/normal_equations.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/parallel.h"
#include "carve/reproducible_sum.h"

namespace cmoe {
namespace {

// Column sums of each piece, and for every column the largest length over the pieces of all ranks: a bound for products,
// |sum_t z_ti z_tj| <= length_i length_j.
struct Moments {
  std::vector<std::vector<double>> sums;
  std::vector<double> length;
};

Moments moments_of(const Backend& backend, const Tensor& z, const TokenChunks& chunks, Communicator& comm) {
  const auto columns = static_cast<size_t>(z.dim(1));
  Moments moments;
  std::vector<double> length(columns, 0.0), square(columns);
  for (size_t c = 0; c < static_cast<size_t>(chunks.local_chunks()); ++c) {
    moments.sums.emplace_back(columns, 0.0);
    std::fill(square.begin(), square.end(), 0.0);
    backend.add_column_moments(z.rows(chunks.begin[c], chunks.begin[c + 1]), moments.sums.back(), square);
    for (size_t i = 0; i < columns; ++i) length[i] = std::max(length[i], std::sqrt(square[i]));
  }
  moments.length = agree_bounds(std::move(length), comm, "column lengths");
  return moments;
}

}  // namespace

NormalEquations normal_equations(const Backend& backend, const Tensor& z, std::span<const UnknownsOfTokens> groups,
                                 const TokenChunks& chunks, Communicator& comm) {
  const int64_t columns = z.dim(1), n = groups.empty() ? 0 : groups.back().last;
  NormalEquations result{.unknowns = n, .right_sides = columns - n};
  const Moments moments = moments_of(backend, z, chunks, comm);
  const std::span<const double> length(moments.length);
  result.products.assign(static_cast<size_t>(n * columns), 0.0);
  for (const UnknownsOfTokens& group : groups) {
    const int64_t rows = group.last - group.first, width = columns - group.first;
    if (rows == 0) continue;
    ReproducibleSum sum(length.subspan(static_cast<size_t>(group.first), static_cast<size_t>(rows)),
                        length.subspan(static_cast<size_t>(group.first)), chunks.total_chunks, "normal equations");
    Tensor part(DType::f32, {rows, width});
    auto begin = group.tokens.begin();
    for (size_t c = 0; c < static_cast<size_t>(chunks.local_chunks()); ++c) {
      const auto end = std::lower_bound(begin, group.tokens.end(), static_cast<int32_t>(chunks.begin[c + 1]));
      backend.gram_rows(z, std::span(begin, end), group.first, group.last, part);
      sum.add(std::as_const(part).span<float>());
      begin = end;
    }
    const std::vector<double> total = sum.finish(comm);
    for (int64_t i = 0; i < rows; ++i) {
      std::copy_n(total.data() + i * width, width, result.products.data() + (group.first + i) * columns + group.first);
    }
  }
  result.mean = sum_reproducibly(moments.sums, columns, comm, "column sums");
  const auto tokens = static_cast<double>(chunks.total_tokens);
  for (double& mean : result.mean) mean /= tokens;
  parallel_for(n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const double sum = result.mean[static_cast<size_t>(i)] * tokens;
      double* row = result.products.data() + i * columns;
      for (int64_t j = i; j < columns; ++j) row[j] -= sum * result.mean[static_cast<size_t>(j)];
    }
  });
  return result;
}

NormalEquations normal_equations(const Backend& backend, const Tensor& z, int64_t unknowns, const TokenChunks& chunks,
                                 Communicator& comm) {
  UnknownsOfTokens all{.first = 0, .last = unknowns, .tokens = std::vector<int32_t>(static_cast<size_t>(z.dim(0)))};
  std::iota(all.tokens.begin(), all.tokens.end(), 0);
  return normal_equations(backend, z, std::span(&all, 1), chunks, comm);
}

}  // namespace cmoe

#include <algorithm>
#include <cmath>

#include "base/parallel.h"
#include "carve/clustering.h"
#include "carve/reproducible_sum.h"
#include "carve/seeds.h"

namespace cmoe {
namespace {

// |a_i| over the tokens of all ranks: [n].
std::vector<double> column_norms(const Tensor& columns, const TokenChunks& chunks, Communicator& comm) {
  const int64_t n = columns.dim(1);
  std::vector<std::vector<double>> squares(static_cast<size_t>(chunks.local_chunks()),
                                           std::vector<double>(static_cast<size_t>(n), 0.0));
  parallel_for(chunks.local_chunks(), 1, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      double* sum = squares[static_cast<size_t>(c)].data();
      for (int64_t t = chunks.begin[c]; t < chunks.begin[c + 1]; ++t) {
        const float* row = columns.row<float>(t);
        for (int64_t i = 0; i < n; ++i) sum[i] += static_cast<double>(row[i]) * row[i];
      }
    }
  });
  std::vector<double> norm = sum_reproducibly(squares, n, comm, "cosine clustering: squared column lengths");
  // A column this short has no direction in f32: treated as zero.
  for (double& value : norm) value = value < 0x1p-200 ? 0 : std::sqrt(value);
  return norm;
}

// The members of each cluster and what scales their columns to length one.
struct Members {
  std::vector<int64_t> begin;       // [R + 1]
  std::vector<int32_t> item;        // ascending within a cluster
  std::vector<float> inverse_norm;  // of item[k]; 0 for a column of zeros
};

Members list_members(std::span<const int32_t> label, std::span<const double> norm, int64_t clusters) {
  Members members;
  members.begin.push_back(0);
  for (int64_t j = 0; j < clusters; ++j) {
    for (size_t i = 0; i < label.size(); ++i) {
      if (label[i] != j) continue;
      members.item.push_back(static_cast<int32_t>(i));
      members.inverse_norm.push_back(norm[i] == 0 ? 0.0f : static_cast<float>(1 / norm[i]));
    }
    members.begin.push_back(static_cast<int64_t>(members.item.size()));
  }
  return members;
}

// out[t, j] = sum over the members i of cluster j of a[t, i] / |a_i|, in the order of i, for `kTokens` rows side by side: their
// sums do not wait for each other.
template <int kTokens>
void sum_members(const float* a, int64_t n, const Members& members, float* out) {
  const auto clusters = static_cast<int64_t>(members.begin.size()) - 1;
  for (int64_t j = 0; j < clusters; ++j) {
    float sum[kTokens] = {};
    for (int64_t k = members.begin[j]; k < members.begin[j + 1]; ++k) {
      const float* column = a + members.item[k];
      for (int t = 0; t < kTokens; ++t) sum[t] += column[t * n] * members.inverse_norm[k];
    }
    for (int t = 0; t < kTokens; ++t) out[t * clusters + j] = sum[t];
  }
}

// The centroids c_j (sums of unit columns) over the tokens of `a` [T, n]: [T, R].
Tensor centroids_of(const Tensor& a, const Members& members) {
  constexpr int64_t kTokens = 8;
  const int64_t tokens = a.dim(0), n = a.dim(1), clusters = static_cast<int64_t>(members.begin.size()) - 1;
  Tensor centroids(DType::f32, {tokens, clusters});
  parallel_for(tokens, 8 * kTokens, [&](int64_t begin, int64_t end) {
    int64_t t = begin;
    for (; t + kTokens <= end; t += kTokens) sum_members<kTokens>(a.row<float>(t), n, members, centroids.row<float>(t));
    for (; t < end; ++t) sum_members<1>(a.row<float>(t), n, members, centroids.row<float>(t));
  });
  return centroids;
}

}  // namespace

Clusters cluster_cosine(const Backend& backend, const Tensor& columns, const TokenChunks& chunks,
                        std::span<const int32_t> seeds, int64_t rounds, Communicator& comm) {
  CMOE_CHECK(columns.shape().size() == 2 && columns.dtype() == DType::f32 && columns.dim(0) == chunks.local_tokens(),
             "cluster_cosine: columns of shape {}, expected f32 [{}, n] (tokens of this rank, neurons)",
             to_string(columns.shape()), chunks.local_tokens());
  const int64_t n = columns.dim(1);
  const auto clusters = static_cast<int64_t>(seeds.size());
  CMOE_CHECK(clusters >= 1 && n % clusters == 0, "cluster_cosine: {} neurons do not divide into {} clusters of equal size", n,
             clusters);
  const std::vector<int32_t> seed_label = label_seeds(seeds, n);
  const std::vector<double> norm = column_norms(columns, chunks, comm);
  const auto costs_to = [&](std::span<const int32_t> label) {
    const Members members = list_members(label, norm, clusters);
    // |a_i . c_j| <= |a_i| |c_j|, and |c_j| is at most the number of members, all of unit length.
    std::vector<double> bound;
    for (int64_t j = 0; j < clusters; ++j) bound.push_back(static_cast<double>(members.begin[j + 1] - members.begin[j]));
    ReproducibleSum sum(norm, bound, chunks.total_chunks, "cosine clustering: products with the centroids");
    Tensor product(DType::f32, {n, clusters});
    for (int64_t c = 0; c < chunks.local_chunks(); ++c) {
      const Tensor part = columns.rows(chunks.begin[c], chunks.begin[c + 1]);
      backend.multiply_transposed(part, centroids_of(part, members), product);
      sum.add(std::span<const float>(product.span<float>()));
    }
    const std::vector<double> dot = sum.finish(comm);  // a_i . c_j

    // |c_j|^2 = sum over the members of (a_i . c_j) / |a_i|: no further pass over the tokens.
    std::vector<double> length(static_cast<size_t>(clusters), 0);
    for (int64_t i = 0; i < n; ++i) {
      if (label[i] >= 0 && norm[i] > 0) length[static_cast<size_t>(label[i])] += dot[i * clusters + label[i]] / norm[i];
    }
    std::vector<int64_t> cost(static_cast<size_t>(n * clusters), 0);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < clusters; ++j) {
        const double scale = norm[i] * std::sqrt(std::max(length[j], 0.0));
        if (scale > 0)
          cost[i * clusters + j] = -std::llround(std::ldexp(std::clamp(dot[i * clusters + j] / scale, -1.0, 1.0), 30));
      }
    }
    return cost;
  };
  return cluster_balanced(costs_to(seed_label), n, clusters, rounds, costs_to);
}

}  // namespace cmoe

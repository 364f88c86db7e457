#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "carve/markers.h"
#include "carve/token_chunks.h"
#include "comm/communicator.h"

namespace cmoe {

/// n items in R clusters of exactly m = n / R, and how it came about.
struct Clusters {
  int64_t clusters = 0;
  std::vector<int32_t> label;      ///< [n]
  std::vector<int64_t> objective;  ///< per round: the total distance of the items to the centroids they were assigned to
  std::vector<int64_t> distance;   ///< [n] to the centroid (mean) of the item's own final cluster, in the units of `objective`
  bool converged = false;          ///< the last round changed no label
};

/// Balanced k-means: round 1 assigns by `first`, the distances to the seeds; each later round by the distances to the means of
/// the clusters, until the labels stay or `rounds` assignments were made. Every assignment is exact
/// (carve/balanced_assignment.h).
///
/// @param first           [n, clusters] integers.
/// @param distances_to    distances [n, clusters] to the means of the given clusters; collective where the data is shared out.
/// @throws Error          unless clusters divides n and rounds >= 1.
Clusters cluster_balanced(std::span<const int64_t> first, int64_t n, int64_t clusters, int64_t rounds,
                          const std::function<std::vector<int64_t>(std::span<const int32_t> label)>& distances_to);

/// The item nearest to the mean of each cluster: [clusters]; ties to the smaller index.
/// On marker bits this is step 4 of the paper, and the behaviour of the authors' code: a neuron that no token marks lies
/// nearest to the sparse mean, so it wins wherever a cluster holds one.
std::vector<int32_t> nearest_items(const Clusters& clusters);

/// The item of largest `rate` of each cluster: [clusters]; ties to the smaller index.
std::vector<int32_t> highest_rate_items(const Clusters& clusters, std::span<const int64_t> rate);

/// The `count` items of largest rate, ties to the smaller index, in that order: the seeds of the paper and of the authors'
/// code.
std::vector<int32_t> highest_rate_seeds(std::span<const int64_t> rate, int64_t count);
std::vector<int32_t> highest_rate_seeds(std::span<const double> rate, int64_t count);

/// Distance between a marker column a_i in {0,1}^T and a centroid c_j in [0,1]^T.
///   l1:          sum_t |a - c|         (authors' code, cdist with p = 1), in units of 1/m
///   squared_l2:  sum_t (a - c)^2       in units of 1/m^2
///   l2:          its square root       (the paper's v3 text), in units of 2^-14 / m, rounded
/// l1 and squared_l2 always give the same clusters and the same nearest neurons: on bits both are a term of the cluster plus a
/// positive factor times |a_i| - 2 a_i . c_j, and a term common to a column does not change a balanced assignment. l2 differs.
enum class MarkerDistance { l1, squared_l2, l2 };

/// Balanced k-means of marker columns, tokens sharded over the ranks. Integers throughout: the same clusters to the bit for any
/// number of ranks. Collective.
///
/// With m items in every cluster, a centroid is a count k[t,j] in 0..m over m; it stays with the rank that has the tokens. The
/// distances follow from one sparse product S[i,j] = sum over the tokens t that mark i of k[t,j], from K_j = sum_t k, Q_j =
/// sum_t k^2 and n_i = |a_i|:
///   m   L1[i,j]  = K_j + m n_i - 2 S[i,j]              m^2 L2[i,j]^2 = Q_j + m^2 n_i - 2 m S[i,j]
/// Time O(marks * R) a round for k_act >= R; bytes on the wire 8 (n + 2) R.
///
/// @param bits    [local tokens, n] markers of the items; a rank may have no token.
/// @param seeds   items whose columns are the first centroids, one a cluster.
/// @param rounds  assignments at most; the authors' code makes one, and one update of the centroids (`Clusters::distance` is to
/// these). Source: CMoE (arXiv:2502.04416v3) section 3.2; `construct_experts_k_means` in the authors' code.
Clusters cluster_markers(const SparseBits& bits, std::span<const int32_t> seeds, MarkerDistance distance, int64_t rounds,
                         Communicator& comm);

/// Balanced k-means by direction: similarity cos(a_i, c_j) of columns over all tokens, c_j the mean of the members' columns
/// scaled to length one; the cost is round(-2^30 cos). A column of zeros has cosine 0 with everything. Collective; products are
/// summed with ReproducibleSum over `chunks`: the same clusters to the bit for any number of ranks.
///
/// @param columns  [local tokens, n] f32, |h_i| |w_d,i|.
/// @param seeds    items whose columns are the first centroids, one a cluster.
/// @throws Error   on a value that is not finite.
Clusters cluster_cosine(const Backend& backend, const Tensor& columns, const TokenChunks& chunks,
                        std::span<const int32_t> seeds, int64_t rounds, Communicator& comm);

}  // namespace cmoe

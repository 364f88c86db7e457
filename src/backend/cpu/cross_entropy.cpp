#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/gemm.h"
#include "base/error.h"
#include "base/parallel.h"

namespace cmoe::cpu {
namespace {

constexpr int64_t kChunk = 1024;  // features whose logits live at once; fixed, because it decides the order of the sum
constexpr int64_t kRows = 168;

// Of one row and one chunk of the vocabulary.
struct Partial {
  float max;
  double sum;  // of exp(logit - max)
};

}  // namespace

void CpuBackend::cross_entropy(const Tensor& x, const Weight& head, std::span<const int32_t> targets,
                               std::span<double> nll) const {
  CMOE_CHECK(head.defined(), "cross_entropy: the head is empty; prepare() it first");
  const int64_t k = head.in_features(), vocab = head.out_features();
  check_matrix("cross_entropy", "x", x, -1, k);
  const int64_t rows = x.dim(0);
  CMOE_CHECK(static_cast<int64_t>(targets.size()) == rows && static_cast<int64_t>(nll.size()) == rows,
             "cross_entropy: {} targets and {} results, expected one per row of x {}", targets.size(), nll.size(),
             to_string(x.shape()));
  for (int32_t target : targets) {
    CMOE_CHECK(target < vocab, "cross_entropy: target {}, expected below the vocabulary of {}", target, vocab);
  }
  if (rows == 0) return;

  const kernels::Gemm& gemm = this->gemm(head.dtype());
  const auto& weight = static_cast<const PackedWeight&>(head.impl());
  const int64_t chunks = (vocab + kChunk - 1) / kChunk;
  std::vector<Partial> partials(static_cast<size_t>(chunks * std::min(rows, kRows)));
  std::vector<float> target_logit(static_cast<size_t>(std::min(rows, kRows)));
  thread_local Scratch packed_scratch;
  for (int64_t row = 0; row < rows; row += kRows) {
    const int64_t count = std::min(kRows, rows - row);
    const RowTiles tiles(count, gemm.tile_rows);
    const int64_t stride = (gemm.packed_bytes(tiles.height, k) + 63) / 64 * 64;
    std::byte* packed = packed_scratch.resize(stride * tiles.count);
    const auto height = [&](int64_t tile) { return std::min(tiles.height, count - tile * tiles.height); };
    parallel_for(tiles.count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        gemm.pack(x.row<float>(row + t * tiles.height), k, height(t), k, packed + t * stride);
    });
    parallel_for(chunks, 1, [&](int64_t begin, int64_t end) {
      thread_local Scratch logits_scratch;
      auto* logits = reinterpret_cast<float*>(logits_scratch.resize(count * kChunk * static_cast<int64_t>(sizeof(float))));
      for (int64_t c = begin; c < end; ++c) {
        const int64_t column = c * kChunk, columns = std::min(kChunk, vocab - column);
        for (int64_t p = 0; p < columns; p += kernels::kPanel) {
          for (int64_t t = 0; t < tiles.count; ++t) {
            gemm.tile(packed + t * stride, height(t), weight.panel((column + p) / kernels::kPanel), k,
                      logits + t * tiles.height * kChunk + p, kChunk, std::min<int64_t>(kernels::kPanel, columns - p), false);
          }
        }
        for (int64_t r = 0; r < count; ++r) {
          const float* line = logits + r * kChunk;
          Partial& partial = partials[static_cast<size_t>(r * chunks + c)];
          table_.sum_exp(line, columns, &partial.max, &partial.sum);
          const int64_t target = targets[static_cast<size_t>(row + r)] - column;
          if (target >= 0 && target < columns) target_logit[static_cast<size_t>(r)] = line[target];
        }
      }
    });
    for (int64_t r = 0; r < count; ++r) {
      const auto at = static_cast<size_t>(row + r);
      if (targets[at] < 0) {
        nll[at] = 0;
        continue;
      }
      const std::span<const Partial> line(&partials[static_cast<size_t>(r * chunks)], static_cast<size_t>(chunks));
      float max = -std::numeric_limits<float>::infinity();
      for (const Partial& partial : line) max = std::max(max, partial.max);
      double sum = 0;
      for (const Partial& partial : line) {
        // A chunk of -inf alone holds nothing; its own differences are NaN.
        if (partial.max == -std::numeric_limits<float>::infinity() && max != partial.max) continue;
        sum += partial.sum * std::exp(static_cast<double>(partial.max) - static_cast<double>(max));
      }
      nll[at] = static_cast<double>(max) + std::log(sum) - static_cast<double>(target_logit[static_cast<size_t>(r)]);
    }
  }
}

}  // namespace cmoe::cpu

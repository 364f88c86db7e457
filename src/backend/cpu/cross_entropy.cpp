#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/packed_weight.h"
#include "base/error.h"
#include "base/parallel.h"

namespace cmoe::cpu {
namespace {

constexpr int64_t kChunk =
    1024;  // features, about, whose logits live at once; the weight alone fixes how many: they order the sum
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

  const auto& weight = static_cast<const PackedWeight&>(head.impl());
  const int64_t chunk_units = std::max<int64_t>(1, kChunk / weight.unit()), chunk = chunk_units * weight.unit();
  const int64_t chunks = (vocab + chunk - 1) / chunk;
  const RowTiles blocks(rows, kRows);
  std::vector<Partial> partials(static_cast<size_t>(chunks * blocks.height));
  std::vector<float> target_logit(static_cast<size_t>(blocks.height));
  for (int64_t b = 0; b < blocks.count; ++b) {
    const int64_t row = b * blocks.height, count = blocks.rows_of(b);
    const PackedRows packed(weight, count,
                            [&](int64_t from, int64_t height, void* to) { weight.pack(x.row<float>(row + from), height, to); });
    const RowTiles& tiles = packed.tiles();
    parallel_for(chunks, 1, [&](int64_t begin, int64_t end) {
      thread_local Scratch logits_scratch;
      auto* logits = reinterpret_cast<float*>(logits_scratch.resize(count * chunk * static_cast<int64_t>(sizeof(float))));
      for (int64_t c = begin; c < end; ++c) {
        const int64_t column = c * chunk, columns = std::min(chunk, vocab - column);
        for (int64_t at = 0; at < columns; at += weight.unit()) {
          for (int64_t t = 0; t < tiles.count; ++t) {
            weight.tile(packed.tile(t), tiles.rows_of(t), (column + at) / weight.unit(), std::min(weight.unit(), columns - at),
                        logits + t * tiles.height * chunk + at, chunk, false);
          }
        }
        for (int64_t r = 0; r < count; ++r) {
          const float* line = logits + r * chunk;
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

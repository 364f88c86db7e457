#include "carve/calibration.h"

#include <algorithm>

#include "carve/token_sums.h"
#include "data/windows.h"

namespace cmoe {

CalibrationShard::CalibrationShard(const std::vector<int32_t>& tokens, int64_t sequence_length, const ModelConfig& config,
                                   const Communicator& comm)
    : sequence_length_(sequence_length), total_sequences_(static_cast<int64_t>(tokens.size()) / sequence_length) {
  const auto [begin, end] = shard_of(total_sequences_, comm.rank(), comm.size());
  first_ = begin;
  std::vector<SequenceStep> steps;
  for (int64_t s = begin; s < end; ++s) {
    caches_.push_back(std::make_unique<KvCache>(config, sequence_length, KvCache::Keep::one_layer));
    steps.push_back(
        {.tokens = std::span(tokens).subspan(static_cast<size_t>(s * sequence_length), static_cast<size_t>(sequence_length)),
         .cache = caches_.back().get()});
  }
  batch_ = std::make_unique<Batch>(steps);
}

TokenChunks CalibrationShard::chunks() const {
  return TokenChunks::of_sequences(local_sequences(), total_sequences_, sequence_length_);
}

// The head over a large vocabulary costs as much as several layers: of many tokens, some tell the mean well enough.
double CalibrationShard::mean_nll(const Transformer& model, const Tensor& x, Communicator& comm) const {
  constexpr int64_t kEnough = 4096;
  const int64_t stride = std::max<int64_t>(1, total_sequences_ * sequence_length_ / kEnough);
  const std::span<const int32_t> ids = batch_->ids();
  std::vector<int32_t> rows, targets;
  std::vector<int64_t> row_of(static_cast<size_t>(batch_->rows()), -1);  // among those that are computed
  int64_t counted = 0;
  for (int64_t s = 0; s < total_sequences_; ++s) {
    for (int64_t i = 0; i + 1 < sequence_length_; i += stride) {
      ++counted;
      const int64_t row = (s - first_) * sequence_length_ + i;
      if (row < 0 || row >= batch_->rows()) continue;  // of another rank
      row_of[static_cast<size_t>(row)] = static_cast<int64_t>(rows.size());
      rows.push_back(static_cast<int32_t>(row));
      targets.push_back(ids[static_cast<size_t>(row + 1)]);
    }
  }
  Tensor chosen(DType::f32, {static_cast<int64_t>(rows.size()), x.dim(1)});
  model.backend().gather_rows(x, rows, chosen);
  const std::vector<double> nll = model.token_nll(model.final_norm(chosen), targets);
  const std::vector<double> total = sum_over_tokens(1, chunks(), comm, [&](int64_t begin, int64_t end, std::span<double> out) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t row = row_of[static_cast<size_t>(t)];
      if (row >= 0) out[0] += nll[static_cast<size_t>(row)];
    }
  });
  return total[0] / static_cast<double>(counted);
}

}  // namespace cmoe

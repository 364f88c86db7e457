#include "carve/calibration.h"

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

double CalibrationShard::mean_nll(const Transformer& model, const Tensor& x, Communicator& comm) const {
  std::vector<int32_t> targets(batch_->ids().begin(), batch_->ids().end());
  if (!targets.empty()) targets.erase(targets.begin());
  targets.resize(static_cast<size_t>(batch_->rows()), -1);
  for (int64_t s = 1; s <= local_sequences(); ++s)
    targets[static_cast<size_t>(s * sequence_length_ - 1)] = -1;  // nothing follows
  const std::vector<double> nll = model.token_nll(model.final_norm(x), targets);
  const std::vector<double> total = sum_over_tokens(1, chunks(), comm, [&](int64_t begin, int64_t end, std::span<double> out) {
    for (int64_t t = begin; t < end; ++t) out[0] += nll[static_cast<size_t>(t)];
  });
  return total[0] / static_cast<double>(total_sequences_ * (sequence_length_ - 1));
}

}  // namespace cmoe

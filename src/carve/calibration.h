#pragma once

#include <memory>
#include <vector>

#include "carve/token_chunks.h"
#include "comm/communicator.h"
#include "model/transformer.h"

namespace cmoe {

/// This rank's calibration sequences as one batch that walks through the layers.
class CalibrationShard {
 public:
  /// @param tokens  [sequences, sequence_length] ids of all ranks; sequences are divided contiguously over the ranks.
  CalibrationShard(const std::vector<int32_t>& tokens, int64_t sequence_length, const ModelConfig& config,
                   const Communicator& comm);

  const Batch& batch() const { return *batch_; }
  int64_t first_sequence() const { return first_; }
  int64_t local_sequences() const { return static_cast<int64_t>(caches_.size()); }
  TokenChunks chunks() const;

  /// Mean -log p of next tokens, nats, over all ranks, of final residual stream x [T, d]: of all up to 4,096, of every n-th of
  /// more. Collective.
  double mean_nll(const Transformer& model, const Tensor& x, Communicator& comm) const;

 private:
  int64_t sequence_length_, total_sequences_, first_;
  std::vector<std::unique_ptr<KvCache>> caches_;
  std::unique_ptr<Batch> batch_;
};

}  // namespace cmoe

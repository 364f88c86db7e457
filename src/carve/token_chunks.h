#pragma once

#include <cstdint>
#include <vector>

namespace cmoe {

/// How the calibration tokens are cut for sums of real numbers: each sequence into pieces of at most kChunkTokens, the same
/// pieces whatever the number of ranks. A rank holds whole sequences, one after the other.
struct TokenChunks {
  static constexpr int64_t kChunkTokens = 2048;

  std::vector<int64_t> begin{0};  ///< this rank's pieces: rows [begin[i], begin[i + 1]) of its activations
  int64_t total_chunks = 0;       ///< pieces of all ranks
  int64_t total_tokens = 0;       ///< tokens of all ranks

  int64_t local_chunks() const { return static_cast<int64_t>(begin.size()) - 1; }
  int64_t local_tokens() const { return begin.back(); }

  /// @param local_sequences  sequences of this rank, each of `sequence_length` tokens; `total_sequences` those of all ranks.
  static TokenChunks of_sequences(int64_t local_sequences, int64_t total_sequences, int64_t sequence_length) {
    TokenChunks chunks;
    for (int64_t s = 0; s < local_sequences; ++s) {
      for (int64_t at = 0; at < sequence_length; at += kChunkTokens) {
        chunks.begin.push_back(s * sequence_length +
                               (at + kChunkTokens < sequence_length ? at + kChunkTokens : sequence_length));
      }
    }
    chunks.total_chunks = total_sequences * ((sequence_length + kChunkTokens - 1) / kChunkTokens);
    chunks.total_tokens = total_sequences * sequence_length;
    return chunks;
  }
};

}  // namespace cmoe

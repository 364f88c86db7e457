#pragma once

#include <cstdint>
#include <random>
#include <span>

namespace cmoe {

struct SamplingOptions {
  double temperature = 0;  ///< 0: greedy, ties to the smaller id
  int64_t top_k = 0;       ///< 0: all
  double top_p = 1;        ///< smallest set of tokens whose probability reaches it
  uint64_t seed = 0;
};

/// Draws next tokens from logits. One per sequence: its stream of random numbers does not depend on other sequences.
class Sampler {
 public:
  explicit Sampler(const SamplingOptions& options) : options_(options), random_(options.seed) {}

  /// @param logits  [vocab]. @throws Error when a logit is NaN.
  int32_t next(std::span<const float> logits);

 private:
  SamplingOptions options_;
  std::mt19937_64 random_;
};

}  // namespace cmoe

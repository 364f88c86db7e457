#pragma once

#include <functional>
#include <vector>

#include "comm/communicator.h"
#include "model/transformer.h"

namespace cmoe {

/// One piece of text to score: the tokens the model reads, and from which of them on the predictions count.
struct ScoredWindow {
  std::span<const int32_t> tokens;
  int64_t score_from = 1;  ///< predictions of tokens[score_from ..] count; at least 1
};

struct PerplexityResult {
  std::vector<double> nll;           ///< [windows] mean -log p of the predicted tokens, nats per token
  std::vector<int64_t> predictions;  ///< [windows]

  /// Mean over windows (the GPTQ protocol), or over predictions where windows differ in length; nats per token.
  double mean() const;
  /// Standard error of the mean over windows; 0 for one window.
  double stderr_of_mean() const;
  double perplexity() const;
};

/// Scores windows, divided over ranks: window i on rank i mod P. The result is the same on all ranks, and in f32 the same to
/// the bit for any number of ranks. Collective: ranks without a window in a step run an empty one.
/// @param on_step  called after each step with the tokens that all ranks read in it.
PerplexityResult evaluate_perplexity(const Transformer& model, std::span<const ScoredWindow> windows, Communicator& comm,
                                     MoeObserver* observer = nullptr, const std::function<void(int64_t tokens)>& on_step = {});

/// Mean of a[i] - b[i] and its standard error: a paired comparison over the same windows.
std::pair<double, double> paired_difference(const std::vector<double>& a, const std::vector<double>& b);

}  // namespace cmoe

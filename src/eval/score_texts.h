#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "model/transformer.h"

namespace cmoe {

/// A text of which the last tokens are scored.
struct ScoredText {
  std::vector<int32_t> tokens;
  int64_t score_from = 1;  ///< predictions of tokens[score_from ..] count; in [1, tokens - 1]
};

struct TextScore {
  double log_likelihood = 0;  ///< sum of log p over the scored tokens, nats
  bool greedy = true;         ///< each of them is the most probable one; found only where it was asked for
};

struct ScoringLimits {
  int64_t step_tokens = 2048;              ///< rows of one forward pass on a rank
  int64_t cache_bytes = int64_t{1} << 30;  ///< KV caches of a rank, beside that of a shared beginning; one question at least
  bool greedy = false;                     ///< find TextScore::greedy, too
};

/// Scores texts, question by question: the texts of one question should begin alike (a context and its choices), and what they
/// share is read once; so is what consecutive questions share in the order of their tokens (worked examples). Questions are
/// divided over the ranks and packed into steps without padding. With f32 weights the result is the same to the bit for any
/// number of ranks and any limits.
///
/// Collective: all ranks pass the same questions and get all scores, [questions][texts].
/// @param on_step  called after each step with the rows that all ranks computed and those of the whole work.
/// @throws Error   when a text scores nothing or is longer than the model's positions.
std::vector<std::vector<TextScore>> score_texts(const Transformer& model, std::span<const std::vector<ScoredText>> questions,
                                                const ScoringLimits& limits, Communicator& comm,
                                                MoeObserver* observer = nullptr,
                                                const std::function<void(int64_t rows, int64_t all_rows)>& on_step = {});

}  // namespace cmoe

#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "eval/score_texts.h"

namespace cmoe {

/// Tokens [begin, end) of one text that a step reads, or of the beginning that a group's questions share.
struct ScoringPart {
  static constexpr size_t kShared = static_cast<size_t>(-1);
  size_t question;  ///< or kShared
  size_t run;       ///< see QuestionShape
  int64_t begin, end;
};

/// How a question's texts are read.
struct QuestionShape {
  std::vector<std::vector<size_t>> runs;  ///< texts that differ in their last token alone are read once
  int64_t shared = 0;                     ///< tokens that all runs begin with, before any that predicts a scored one
  int64_t longest = 0;                    ///< tokens read of the longest text
};
/// @throws Error when a text scores nothing.
QuestionShape shape_of(const std::vector<ScoredText>& question);

/// Questions that run together.
struct ScoringGroup {
  std::vector<size_t> questions;
  int64_t shared = 0;         ///< tokens that all of them begin with, read once
  bool reads_shared = false;  ///< false: the cache of the group before holds them
  std::vector<std::vector<ScoringPart>> steps;
};

/// What one rank does, in order.
struct ScoringPlan {
  std::vector<ScoringGroup> groups;
  std::vector<int64_t> step_rows;  ///< [steps of all groups]
};

/// The plans of all ranks: questions in the order of their tokens, so that those that begin alike are neighbours, cut into
/// parts of equal work. @param cache_tokens  that the KV caches of a group's questions may hold together
std::vector<ScoringPlan> plan_scoring(std::span<const std::vector<ScoredText>> questions, std::span<const QuestionShape> shapes,
                                      int64_t step_tokens, int64_t cache_tokens, int ranks);

}  // namespace cmoe

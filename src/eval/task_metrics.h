#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "eval/score_texts.h"
#include "eval/task_questions.h"

namespace cmoe {

/// One figure of a task.
struct TaskMetric {
  std::string task;      ///< "piqa", "mmlu_anatomy", "mmlu_stem", "mmlu"
  std::string metric;    ///< acc, acc_norm, perplexity, word_perplexity, byte_perplexity, bits_per_byte
  bool subject = false;  ///< of one subject of MMLU
  int64_t documents = 0;
  double value = 0;
  std::optional<double> error;       ///< standard error, where the harness gives one without resampling
  std::vector<double> per_document;  ///< what the value is the mean of (perplexity: log likelihoods); empty for others
};

/// Index of the choice with the largest log likelihood, each divided by its choice's length where `normalised`; the first of
/// equals.
int64_t best_choice(const TaskDocument& document, std::span<const TextScore> scores, bool normalised);

/// The figures of a task as lm-evaluation-harness defines them: acc and acc_norm are means over documents with standard error
/// s / sqrt(n); MMLU's subjects, its four groups and the whole, with pooled errors, in this order; perplexity of last words
/// exp(-mean log p), its error by the delta method (the harness resamples); word and byte perplexity of texts by the words and
/// bytes they had before detokenisation.
/// @param scores [documents][requests or windows]
std::vector<TaskMetric> task_metrics(const Task& task, std::span<const std::vector<TextScore>> scores);

}  // namespace cmoe

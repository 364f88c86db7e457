#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/json_rows.h"

namespace cmoe {

/// What is asked of a model, and how the answer counts.
enum class TaskKind {
  multiple_choice,  ///< every choice is scored; the best one is the answer
  last_word,        ///< one continuation is scored; right when greedy decoding would write it (LAMBADA)
  rolling,          ///< a whole text is scored (WikiText)
};

/// Where the worked examples ("shots") before a question come from.
enum class ShotRule {
  none,           ///< the task takes none
  random,         ///< drawn from the shot split anew for every question
  random_others,  ///< the same, with one more drawn so that the question itself can be left out
  first,          ///< the first ones of the question's subject
};

/// One row of a task, as it is put to a model.
struct TaskDocument {
  std::vector<std::string> contexts;       ///< [1], or [choices] where the choices stand in the contexts (WinoGrande)
  std::vector<std::string> continuations;  ///< [choices] with the space before them, or [1] that all contexts share
  std::vector<int64_t> lengths;            ///< [choices] Unicode characters of a choice, the divisor of acc_norm
  int64_t gold = 0;                        ///< index of the right choice
  std::string subject;                     ///< of MMLU
  int64_t words = 0, bytes = 0;            ///< of a rolling text, before it was detokenised

  /// As a worked example: what is asked, and the right answer.
  const std::string& question() const { return context(gold); }
  std::string answer() const { return continuation(gold).substr(1); }

  int64_t requests() const { return static_cast<int64_t>(std::max(contexts.size(), continuations.size())); }
  const std::string& context(int64_t request) const {
    return contexts[contexts.size() == 1 ? 0 : static_cast<size_t>(request)];
  }
  const std::string& continuation(int64_t request) const {
    return continuations[continuations.size() == 1 ? 0 : static_cast<size_t>(request)];
  }
};

/// A task of lm-evaluation-harness: how its rows become questions. Source: lm_eval/tasks at 0.4.13.
struct TaskDefinition {
  std::string_view name;
  TaskKind kind;
  bool normalised;                       ///< acc_norm is reported beside acc
  std::vector<std::string_view> splits;  ///< names of what is evaluated, the harness's own first
  std::string_view shot_split;           ///< "train" or "dev"
  ShotRule shots;
  TaskDocument (*document)(const JsonRow& row);
};

/// @throws Error naming the nearest task and all of them.
const TaskDefinition& find_task(std::string_view name);
/// All names, in a fixed order, joined by ", ".
std::string task_names();

/// "mmlu_stem", "mmlu_humanities", "mmlu_social_sciences" or "mmlu_other", the group of an MMLU subject; "mmlu_other" for a
/// subject that the harness does not know.
std::string mmlu_group(std::string_view subject);

/// The pages of WikiText raw as the harness's document-level data set has them: a page begins at a line "= Title =".
std::vector<std::string> wikitext_pages(std::string_view raw);
/// WikiText's tokenisation taken back. Source: lm_eval/tasks/wikitext/preprocess_wikitext.py.
std::string detokenize_wikitext(std::string page);
/// The document of one page.
TaskDocument wikitext_document(const std::string& page);

}  // namespace cmoe

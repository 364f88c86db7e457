#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "eval/score_texts.h"
#include "eval/task.h"

namespace cmoe {

/// Where a task's rows are, and how many of them count.
struct TaskSource {
  std::string task;    ///< a name of task_names()
  std::string file;    ///< its rows; empty looks for `folder`/TASK.SPLIT.jsonl[.gz] or TASK.jsonl[.gz]
  std::string folder;  ///< of files, that of the shots too; empty takes the folder of `file`
  int64_t shots = 0;
  int64_t limit = 0;  ///< documents at most (of each subject of MMLU); 0 for all
};

/// A task's documents with the texts around them. The texts do not depend on the model.
struct Task {
  const TaskDefinition* definition = nullptr;
  std::string file;
  int64_t shots = 0;
  std::vector<TaskDocument> documents;
  std::vector<TaskDocument> examples;         ///< the pool of worked examples
  std::vector<std::vector<size_t>> shots_of;  ///< [documents] examples before it, in their order
};

/// Reads a task and draws its shots as lm-evaluation-harness does: `random.Random(1234)`, document after document.
/// @throws Error naming file, line and key; or the files looked for.
Task read_task(const TaskSource& source);

/// Token ids of one request as the harness cuts them: context and continuation are encoded together, and what lies behind the
/// tokens of the context alone is scored; spaces at the context's end count to the continuation; an empty context is BOS, or
/// EOS where there is none. Of more than max_length + 1 tokens the last ones count. Source: lm_eval/api/model.py,
/// TemplateLM._encode_pair and loglikelihood; models/huggingface.py, _loglikelihood_tokens.
/// @throws Error when the continuation has no token, or more than max_length.
ScoredText encode_request(const Tokenizer& tokenizer, const std::string& context, const std::string& continuation,
                          int64_t max_length, const std::string& where);

/// A whole text in windows of at most max_length tokens read, each but the first with one token of context; every token is
/// scored once. Source: lm_eval/utils.py, get_rolling_token_windows with context_len = 1.
std::vector<ScoredText> rolling_windows(const Tokenizer& tokenizer, const std::string& text, int64_t max_length);

/// What is scored for one request of a document.
struct TaskRequest {
  std::string context, continuation;
};
/// @param chat  the tokenizer whose chat template wraps the context, or null: description as the system's message, each worked
/// example as a user's and an assistant's, the question as the user's last; choices then have no space before them. A template
/// that knows no system is given none. Source: lm_eval/api/task.py, fewshot_context with fewshot_as_multiturn.
TaskRequest task_request(const Task& task, size_t document, int64_t request, const Tokenizer* chat);

/// The texts of every document: one a request, or the windows of a rolling text. Works on all threads.
std::vector<std::vector<ScoredText>> encode_task(const Task& task, const Tokenizer& tokenizer, int64_t max_length,
                                                 bool chat = false);

}  // namespace cmoe

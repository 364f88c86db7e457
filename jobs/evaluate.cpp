// cmoe evaluate: models side by side, by perplexity of text or by the tasks of lm-evaluation-harness.

#include <algorithm>
#include <cstdio>
#include <initializer_list>

#include "base/atomic_file.h"
#include "base/error.h"
#include "jobs/evaluation.h"
#include "jobs/jobs.h"
#include "model/expert_plan.h"

namespace cmoe::jobs {
namespace {

void declare(Options& options, Evaluation& job) {
  options.add("perplexity", &job.perplexity, "mean negative log-likelihood and perplexity of --dataset");
  options.add(
      "tasks", &job.tasks,
      "tasks of lm-evaluation-harness instead, between commas: NAME, whose rows are in --task-data, or NAME=FILE. Names: "
      "arc_challenge, arc_easy, boolq, hellaswag, lambada_openai, mmlu, multiple_choice, openbookqa, piqa, sciq, wikitext, "
      "winogrande");
  options.add("model", &job.models, "Hugging Face folder, GGUF file, or a folder that cmoe wrote; may be repeated");
  options.add("adapter", &job.adapters, "LoRA adapter of each --model, in their order; none for a model without one");
  options.add("dataset", &job.datasets, "text file (plain, .jsonl, WikiText raw; .gz); may be repeated");
  options.add_choice("text-format", &job.text_format, {"auto", "plain", "jsonl", "wikitext"}, "how to read the text");
  options.add(
      "seq-len", &job.seq_len,
      "tokens of a window; with --tasks the most that the model reads of a text, by default its max_position_embeddings",
      {.least = 2});
  options.add("windows", &job.windows, "windows at most; 0 scores all", {.least = 0});
  options.add("stride", &job.stride, "overlapping windows that advance by this many tokens; 0 for windows that do not overlap",
              {.least = 0});
  options.add("task-data", &job.task_data, "folder of JSON lines files TASK.SPLIT.jsonl[.gz] with the rows of the tasks");
  options.add("fewshot", &job.fewshot, "worked examples before every question of a task", {.least = 0, .most = 1000});
  options.add("chat", &job.chat,
              "put the questions of tasks through the model's chat template, worked examples as turns of it");
  options.add("limit", &job.limit, "documents of a task at most (of each subject of mmlu); 0 takes all", {.least = 0});
  options.add("log-samples", &job.log_samples, "write every document's requests and log likelihoods to this JSON lines file");
  options.add("step-tokens", &job.step_tokens, "tokens that a rank reads in one step of --tasks; changes no result in f32",
              {.least = 1, .most = 1 << 20});
  options.add_choice("dtype", &job.dtype, {"f32", "bf16"}, "type of the weights while running");
  options.add("json", &job.json, "write the result to this file");
  options.add("expert-stats", &job.expert_stats, "write tokens per expert and layer to this JSON file");
  options.add("update-card", &job.update_card, "add the figures to the README.md of carved folders");
  options.require("model");
  job.experts.declare(options);
}

// An option that has no part in what is measured would be lost in silence.
void refuse_options_of(const Options& options, const char* measurement, std::initializer_list<const char*> names) {
  for (const char* name : names)
    CMOE_CHECK(!options.given(name), "evaluate: --{} belongs to {}; leave it out", name, measurement);
}

void check(const Evaluation& job, const Options& options) {
  CMOE_CHECK(job.perplexity != !job.tasks.empty(), "evaluate: say what to measure; expected --perplexity or --tasks{}",
             job.perplexity ? ", not both" : "");
  if (job.perplexity) {
    refuse_options_of(options, "--tasks", {"task-data", "fewshot", "chat", "limit", "log-samples", "step-tokens"});
  } else {
    refuse_options_of(options, "--perplexity", {"dataset", "text-format", "windows", "stride"});
  }
  CMOE_CHECK(!job.perplexity || !job.datasets.empty(), "evaluate: no text; expected --dataset FILE with --perplexity");
  CMOE_CHECK(job.models.size() == 1 || (job.experts.moe_stats.empty() && job.experts.trace.empty()),
             "evaluate: --moe-stats and --trace with {} models; expected one model, whose layers they tell of",
             job.models.size());
  CMOE_CHECK(job.adapters.empty() || job.adapters.size() == job.models.size(),
             "evaluate: {} adapters for {} models; expected one for each, 'none' where a model has none", job.adapters.size(),
             job.models.size());
}

// From the headers alone. A window's keys and values are kept for one layer at a time; a task's for all layers.
void print_plan(const Evaluation& job, Session& session) {
  const int ranks = job.experts.group_size(session.world());
  for (const std::string& path : job.models) {
    const Checkpoint checkpoint = open_checkpoint(path);
    const ModelConfig& config = checkpoint.config;
    const int64_t longest = job.perplexity || job.seq_len_given ? job.seq_len : config.max_position_embeddings;
    const int64_t cache = job.perplexity ? KvCache::bytes(config, longest) / config.num_hidden_layers
                                         : std::max(ScoringLimits().cache_bytes, KvCache::bytes(config, longest));
    const int64_t rows = job.perplexity ? job.seq_len : job.step_tokens;
    if (session.is_root())
      print_expert_plan(job.experts, checkpoint, parse_dtype(job.dtype), ranks, cache, activation_bytes(config, rows));
  }
}

}  // namespace

int evaluate(int argc, char** argv, Environment& environment) {
  Session session(environment);
  Evaluation job;
  Options options(
      "cmoe evaluate",
      "Scores one or several models on the same text or tasks; differences are to the first model, window by window or "
      "document by document.");
  declare(options, job);
  session.declare(options);
  if (!session.parse(options, argc, argv)) return 0;
  job.seq_len_given = options.given("seq-len");
  check(job, options);
  if (job.experts.dry_run) {
    print_plan(job, session);
    return 0;
  }
  EvaluationReport report = job.perplexity ? evaluate_text(job, session) : evaluate_tasks(job, session);
  if (!session.is_root()) return 0;
  std::fputs(report.table.c_str(), stdout);
  if (!job.json.empty()) {
    report.json["options"] = options.effective_config();
    write_file_atomically(job.json, report.json.dump(2) + "\n");
  }
  if (!job.expert_stats.empty())
    write_file_atomically(job.expert_stats, nlohmann::json{{"models", report.experts}}.dump(1) + "\n");
  return 0;
}

}  // namespace cmoe::jobs

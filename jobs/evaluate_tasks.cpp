// Tasks of lm-evaluation-harness, models side by side.

#include <filesystem>
#include <optional>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/format.h"
#include "base/progress.h"
#include "base/timer.h"
#include "data/load_tokenizer.h"
#include "eval/perplexity.h"
#include "eval/task_metrics.h"
#include "jobs/evaluation.h"

namespace cmoe::jobs {
namespace {

struct ScoredModel {
  std::string label;
  std::vector<std::vector<TaskMetric>> metrics;  // [tasks]
  double active_fraction = 1, seconds = 0;
  int64_t rows = 0;  // tokens that were read, each shared beginning once
};

// "piqa,arc_easy=FILE"
std::vector<Task> read_tasks(const Evaluation& job) {
  std::vector<Task> tasks;
  for (size_t begin = 0; begin <= job.tasks.size();) {
    const size_t end = std::min(job.tasks.find(',', begin), job.tasks.size());
    const std::string item = job.tasks.substr(begin, end - begin);
    begin = end + 1;
    const size_t equals = std::min(item.find('='), item.size());
    TaskSource source{.task = item.substr(0, equals), .folder = job.task_data, .shots = job.fewshot, .limit = job.limit};
    for (const Task& task : tasks)
      CMOE_CHECK(task.definition->name != source.task, "evaluate: task {} is named twice in --tasks", source.task);
    if (equals < item.size()) source.file = item.substr(equals + 1);
    tasks.push_back(read_task(source));
  }
  return tasks;
}

// One line a document: what was asked, what the model gave.
void log_samples(const std::string& label, const Task& task, const std::vector<std::vector<TextScore>>& scores,
                 const Tokenizer* chat, std::string& lines) {
  for (size_t i = 0; i < scores.size(); ++i) {
    const TaskDocument& document = task.documents[i];
    nlohmann::ordered_json line{{"model", label}, {"task", task.definition->name}, {"doc_id", i}};
    if (!document.subject.empty()) line["subject"] = document.subject;
    for (const TextScore& score : scores[i]) line["resps"].push_back({score.log_likelihood, score.greedy});
    for (int64_t request = 0; request < document.requests(); ++request) {
      const TaskRequest asked = task_request(task, i, request, chat);
      line["arguments"].push_back({asked.context, asked.continuation});
    }
    if (task.definition->kind == TaskKind::multiple_choice) {
      line["target"] = document.gold;
      line["acc"] = best_choice(document, scores[i], false) == document.gold ? 1 : 0;
      line["acc_norm"] = best_choice(document, scores[i], true) == document.gold ? 1 : 0;
    }
    lines += line.dump() + "\n";
  }
}

ScoredModel score_model(const Evaluation& job, size_t index, const std::vector<Task>& tasks, Session& session,
                        nlohmann::json& experts, std::string& samples) {
  EvaluatedModel model(job, index, session);
  const Tokenizer tokenizer = load_tokenizer(job.models[index]);
  const int64_t positions = model.transformer().config().max_position_embeddings;
  CMOE_CHECK(!job.seq_len_given || job.seq_len <= positions, "evaluate: --seq-len {}; {} has {} positions", job.seq_len,
             job.models[index], positions);
  ScoredModel scored{.label = job.label(index)};
  Timer timer;
  for (const Task& task : tasks) {
    const std::vector<std::vector<ScoredText>> questions =
        encode_task(task, tokenizer, job.seq_len_given ? job.seq_len : positions, job.chat);
    const ScoringLimits limits{.step_tokens = job.step_tokens,
                               .greedy = task.definition->kind == TaskKind::last_word || !job.log_samples.empty()};
    std::optional<Progress> progress;
    const std::string name =
        fmt::format("{} on {}", std::filesystem::path(job.models[index]).filename().string(), task.definition->name);
    const std::vector<std::vector<TextScore>> scores = score_texts(model.transformer(), questions, limits, session.world(),
                                                                   model.observer(), [&](int64_t rows, int64_t all_rows) {
                                                                     if (!progress) progress.emplace(name, all_rows, "tokens");
                                                                     progress->advance(rows);
                                                                     scored.rows += rows;
                                                                   });
    if (progress) progress->finish();
    scored.metrics.push_back(task_metrics(task, scores));
    if (!job.log_samples.empty() && session.is_root())
      log_samples(scored.label, task, scores, job.chat ? &tokenizer : nullptr, samples);
  }
  scored.seconds = timer.seconds();
  model.finish();
  scored.active_fraction = model.experts().active_fraction();
  experts.push_back({{"model", scored.label}, {"experts", model.experts().to_json()}});
  return scored;
}

std::string comparison(const std::vector<Task>& tasks, const std::vector<ScoredModel>& models) {
  Table table({"task", "shots", "documents", "metric", "model", "active FFN", "value", "std err", "minus first", "std err"});
  const auto four = [](double value) { return fmt::format("{:.4f}", value); };
  for (size_t t = 0; t < tasks.size(); ++t) {
    for (size_t m = 0; m < models[0].metrics[t].size(); ++m) {
      const TaskMetric& first = models[0].metrics[t][m];
      if (first.subject) continue;  // of MMLU; they stand in the JSON
      for (const ScoredModel& model : models) {
        const TaskMetric& metric = model.metrics[t][m];
        const bool paired = &metric != &first && !metric.per_document.empty() && metric.metric.starts_with("acc");
        const auto [difference, error] =
            paired ? paired_difference(metric.per_document, first.per_document) : std::pair(0.0, 0.0);
        table.add_row({metric.task, std::to_string(tasks[t].shots), std::to_string(metric.documents), metric.metric,
                       model.label, fmt::format("{:.3f}", model.active_fraction), four(metric.value),
                       metric.error ? four(*metric.error) : "", paired ? fmt::format("{:+.4f}", difference) : "",
                       paired ? four(error) : ""});
      }
    }
  }
  return table.text();
}

// The harness's result file, once a model.
nlohmann::ordered_json to_json(const std::vector<Task>& tasks, const std::vector<ScoredModel>& models) {
  nlohmann::ordered_json json{{"models", nlohmann::json::array()}};
  for (const ScoredModel& model : models) {
    nlohmann::ordered_json one{{"model", model.label}};
    for (size_t t = 0; t < tasks.size(); ++t) {
      for (const TaskMetric& metric : model.metrics[t]) {
        nlohmann::ordered_json& result = one["results"][metric.task];
        result["alias"] = metric.task;
        result[metric.metric + ",none"] = metric.value;
        result[metric.metric + "_stderr,none"] = metric.error ? nlohmann::ordered_json(*metric.error) : "N/A";
        one["n-shot"][metric.task] = tasks[t].shots;
        one["n-samples"][metric.task] = metric.documents;
        one["files"][metric.task] = tasks[t].file;
      }
    }
    one["active_fraction"] = model.active_fraction;
    one["tokens"] = model.rows;
    one["seconds"] = model.seconds;
    json["models"].push_back(std::move(one));
  }
  return json;
}

// Adds what was measured to the README.md of every folder that cmoe wrote.
void update_cards(const Evaluation& job, const std::vector<Task>& tasks, const std::vector<ScoredModel>& models) {
  for (size_t i = 0; i < models.size(); ++i) {
    if (!job.adapter(i).empty()) continue;
    std::string rows;
    for (size_t t = 0; t < tasks.size(); ++t) {
      for (const TaskMetric& metric : models[i].metrics[t]) {
        if (metric.subject) continue;
        rows += fmt::format("| {} | {} | {} | {:.3f} | {} | {:.4f}{} |\n", metric.task, tasks[t].shots, metric.documents,
                            models[i].active_fraction, metric.metric, metric.value,
                            metric.error ? fmt::format(" +- {:.4f}", *metric.error) : "");
      }
    }
    add_to_card(job.models[i], "Measured tasks", "| task | shots | documents | active FFN | metric | value |", rows);
  }
}

}  // namespace

EvaluationReport evaluate_tasks(const Evaluation& job, Session& session) {
  const std::vector<Task> tasks = read_tasks(job);
  EvaluationReport report;
  std::vector<ScoredModel> models;
  std::string samples;
  for (size_t i = 0; i < job.models.size(); ++i) models.push_back(score_model(job, i, tasks, session, report.experts, samples));
  report.table = comparison(tasks, models);
  report.json = to_json(tasks, models);
  if (session.is_root()) {
    if (!job.log_samples.empty()) write_file_atomically(job.log_samples, samples);
    if (job.update_card) update_cards(job, tasks, models);
  }
  return report;
}

}  // namespace cmoe::jobs

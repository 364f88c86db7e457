#include "eval/task_metrics.h"

#include <cmath>
#include <map>
#include <numbers>
#include <numeric>

#include "eval/perplexity.h"

namespace cmoe {
namespace {

TaskMetric mean_metric(std::string task, std::string metric, std::vector<double> values) {
  const auto [mean, error] = paired_difference(values, std::vector<double>(values.size(), 0.0));
  TaskMetric made{.task = std::move(task), .metric = std::move(metric), .value = mean, .per_document = std::move(values)};
  made.documents = static_cast<int64_t>(made.per_document.size());
  if (made.documents > 1) made.error = error;
  return made;
}

// Subtasks put together, each with its weight by size. Source: lm_eval/api/metrics.py, pooled_sample_stderr.
TaskMetric pooled(std::string name, std::span<const TaskMetric> parts) {
  std::vector<double> values;
  double squares = 0;
  for (const TaskMetric& part : parts) {
    values.insert(values.end(), part.per_document.begin(), part.per_document.end());
    const auto n = static_cast<double>(part.documents);
    squares += (n - 1) * n * std::pow(part.error.value_or(0), 2);
  }
  const auto n = static_cast<double>(values.size());
  TaskMetric made = mean_metric(std::move(name), parts[0].metric, std::move(values));
  const double freedom = n - static_cast<double>(parts.size());
  made.error.reset();
  if (freedom > 0) made.error = std::sqrt(squares / freedom / n);
  return made;
}

std::vector<TaskMetric> choice_metrics(const Task& task, std::span<const std::vector<TextScore>> scores) {
  std::vector<TaskMetric> metrics;
  const std::string name(task.definition->name);
  for (const bool normalised : {false, true}) {
    if (normalised && !task.definition->normalised) continue;
    std::map<std::string, std::vector<double>> right;  // by subject
    for (size_t i = 0; i < scores.size(); ++i) {
      const TaskDocument& document = task.documents[i];
      right[document.subject].push_back(best_choice(document, scores[i], normalised) == document.gold ? 1 : 0);
    }
    const char* metric = normalised ? "acc_norm" : "acc";
    if (right.size() == 1 && right.begin()->first.empty()) {
      metrics.push_back(mean_metric(name, metric, std::move(right.begin()->second)));
      continue;
    }
    std::map<std::string, std::vector<TaskMetric>> groups;
    std::vector<TaskMetric> subjects;
    for (auto& [subject, values] : right) {
      subjects.push_back(mean_metric(name + "_" + subject, metric, std::move(values)));
      subjects.back().subject = true;
      groups[mmlu_group(subject)].push_back(subjects.back());
    }
    const TaskMetric whole = pooled(name, subjects);
    metrics.insert(metrics.end(), subjects.begin(), subjects.end());
    for (const auto& [group, members] : groups) metrics.push_back(pooled(group, members));
    metrics.push_back(whole);
  }
  return metrics;
}

std::vector<TaskMetric> last_word_metrics(const std::string& name, std::span<const std::vector<TextScore>> scores) {
  std::vector<double> log_likelihoods, greedy;
  for (const std::vector<TextScore>& score : scores) {
    log_likelihoods.push_back(score[0].log_likelihood);
    greedy.push_back(score[0].greedy ? 1 : 0);
  }
  TaskMetric perplexity = mean_metric(name, "perplexity", std::move(log_likelihoods));
  perplexity.value = std::exp(-perplexity.value);
  if (perplexity.error) *perplexity.error *= perplexity.value;
  return {perplexity, mean_metric(name, "acc", std::move(greedy))};
}

std::vector<TaskMetric> rolling_metrics(const Task& task, std::span<const std::vector<TextScore>> scores) {
  double sum = 0;
  int64_t words = 0, bytes = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    for (const TextScore& window : scores[i]) sum += window.log_likelihood;
    words += task.documents[i].words;
    bytes += task.documents[i].bytes;
  }
  const std::string name(task.definition->name);
  const auto documents = static_cast<int64_t>(scores.size());
  const double per_byte = -sum / static_cast<double>(bytes);
  const auto made = [&](const char* metric, double value) {
    return TaskMetric{.task = name, .metric = metric, .documents = documents, .value = value};
  };
  return {made("word_perplexity", std::exp(-sum / static_cast<double>(words))), made("byte_perplexity", std::exp(per_byte)),
          made("bits_per_byte", per_byte / std::numbers::ln2)};
}

}  // namespace

int64_t best_choice(const TaskDocument& document, std::span<const TextScore> scores, bool normalised) {
  size_t best = 0;
  double best_value = -std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < scores.size(); ++i) {
    const double value = scores[i].log_likelihood / (normalised ? static_cast<double>(document.lengths[i]) : 1.0);
    if (value > best_value) {
      best = i;
      best_value = value;
    }
  }
  return static_cast<int64_t>(best);
}

std::vector<TaskMetric> task_metrics(const Task& task, std::span<const std::vector<TextScore>> scores) {
  switch (task.definition->kind) {
    case TaskKind::multiple_choice:
      return choice_metrics(task, scores);
    case TaskKind::last_word:
      return last_word_metrics(std::string(task.definition->name), scores);
    case TaskKind::rolling:
      return rolling_metrics(task, scores);
  }
  return {};
}

}  // namespace cmoe

// Perplexity of models side by side, window by window.

#include <filesystem>

#include "base/error.h"
#include "base/format.h"
#include "base/progress.h"
#include "base/timer.h"
#include "data/load_tokenizer.h"
#include "data/windows.h"
#include "eval/perplexity.h"
#include "jobs/evaluation.h"

namespace cmoe::jobs {
namespace {

struct Evaluated {
  std::string model;
  PerplexityResult result;
  double active_fraction = 1, seconds = 0;
  int64_t tokens = 0;
  nlohmann::json experts;
};

// Consecutive windows of seq_len (GPTQ protocol); with a stride, overlapping ones that score every token once.
std::vector<ScoredWindow> cut_windows(const std::vector<int32_t>& tokens, const Evaluation& job) {
  const auto count = static_cast<int64_t>(tokens.size());
  std::vector<StridedWindow> places;
  if (job.stride > 0) {
    places = strided_windows(count, job.seq_len, job.stride);
    if (job.windows > 0 && static_cast<int64_t>(places.size()) > job.windows) places.resize(static_cast<size_t>(job.windows));
  } else {
    for (int64_t offset : consecutive_offsets(count, job.seq_len, job.windows))
      places.push_back({.offset = offset, .length = job.seq_len});
  }
  std::vector<ScoredWindow> windows;
  for (const StridedWindow& place : places) {
    windows.push_back(
        {.tokens = std::span(tokens).subspan(static_cast<size_t>(place.offset), static_cast<size_t>(place.length)),
         .score_from = place.score_from});
  }
  return windows;
}

Evaluated evaluate_model(const Evaluation& job, size_t index, Session& session) {
  const std::string& path = job.models[index];
  EvaluatedModel model(job, index, session);
  const std::vector<int32_t> tokens = read_tokens(load_tokenizer(path), job.datasets, job.text_format);
  const std::vector<ScoredWindow> windows = cut_windows(tokens, job);
  Evaluated evaluated{.model = job.label(index)};
  for (const ScoredWindow& window : windows) evaluated.tokens += static_cast<int64_t>(window.tokens.size());
  Progress progress(std::filesystem::path(path).filename().string(), evaluated.tokens, "tokens");
  Timer timer;
  evaluated.result = evaluate_perplexity(model.transformer(), windows, session.world(), model.observer(),
                                         [&](int64_t n) { progress.advance(n); });
  evaluated.seconds = timer.seconds();
  progress.finish();
  model.finish();
  evaluated.active_fraction = model.experts().active_fraction();
  evaluated.experts = model.experts().to_json();
  return evaluated;
}

// One row a model; differences are to the first, over the same windows.
std::string comparison(const std::vector<Evaluated>& all) {
  Table table({"model", "active FFN", "perplexity", "nats/token", "std err", "minus first", "std err", "tokens/s"});
  for (const Evaluated& one : all) {
    const auto [difference, error] = paired_difference(one.result.nll, all[0].result.nll);
    const bool first = &one == &all[0];
    table.add_row({one.model, fmt::format("{:.3f}", one.active_fraction), fmt::format("{:.3f}", one.result.perplexity()),
                   fmt::format("{:.4f}", one.result.mean()), fmt::format("{:.4f}", one.result.stderr_of_mean()),
                   first ? "" : fmt::format("{:+.4f}", difference), first ? "" : fmt::format("{:.4f}", error),
                   fmt::format("{:.0f}", static_cast<double>(one.tokens) / one.seconds)});
  }
  return table.text();
}

nlohmann::ordered_json to_json(const std::vector<Evaluated>& all) {
  nlohmann::ordered_json json{{"models", nlohmann::json::array()}};
  for (const Evaluated& one : all) {
    json["models"].push_back({{"model", one.model},
                              {"perplexity", one.result.perplexity()},
                              {"nll", one.result.nll},
                              {"nll_mean", one.result.mean()},
                              {"nll_stderr", one.result.stderr_of_mean()},
                              {"active_fraction", one.active_fraction},
                              {"tokens", one.tokens},
                              {"seconds", one.seconds}});
  }
  return json;
}

// Adds what was measured to the README.md of every folder that cmoe wrote.
void update_cards(const std::vector<Evaluated>& all, const Evaluation& job) {
  std::string texts;
  for (const std::string& dataset : job.datasets)
    texts += (texts.empty() ? "" : ", ") + std::filesystem::path(dataset).filename().string();
  for (size_t i = 0; i < all.size(); ++i) {
    const PerplexityResult& result = all[i].result;
    if (!job.adapter(i).empty()) continue;
    add_to_card(job.models[i], "Measured perplexity", "| text | windows | active FFN | perplexity | nats per token |",
                fmt::format("| {} | {} x {} | {:.3f} | {:.3f} | {:.4f} +- {:.4f} |\n", texts, result.nll.size(), job.seq_len,
                            all[i].active_fraction, result.perplexity(), result.mean(), result.stderr_of_mean()));
  }
}

}  // namespace

EvaluationReport evaluate_text(const Evaluation& job, Session& session) {
  std::vector<Evaluated> all;
  EvaluationReport report;
  for (size_t i = 0; i < job.models.size(); ++i) {
    all.push_back(evaluate_model(job, i, session));
    CMOE_CHECK(all.back().result.nll.size() == all[0].result.nll.size(),
               "evaluate: {} gives {} windows and {} gives {}: their tokenizers differ, so they cannot be compared in one call",
               job.models[i], all.back().result.nll.size(), job.models[0], all[0].result.nll.size());
    report.experts.push_back({{"model", all.back().model}, {"experts", all.back().experts}});
  }
  report.table = comparison(all);
  report.json = to_json(all);
  if (job.update_card && session.is_root()) update_cards(all, job);
  return report;
}

}  // namespace cmoe::jobs

// cmoe evaluate: perplexity of models side by side.

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/format.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/read_file.h"
#include "base/timer.h"
#include "data/load_tokenizer.h"
#include "data/windows.h"
#include "eval/expert_counter.h"
#include "eval/perplexity.h"
#include "jobs/expert_options.h"
#include "jobs/jobs.h"
#include "jobs/session.h"
#include "model/expert_plan.h"

namespace cmoe::jobs {
namespace {

struct Job {
  std::vector<std::string> models, adapters, datasets;
  std::string text_format = "auto", dtype = "f32", json, expert_stats;
  bool perplexity = false, update_card = false;
  int64_t seq_len = 2048, windows = 0, stride = 0;
  ExpertOptions experts;
};

struct Evaluated {
  std::string model;
  PerplexityResult result;
  double active_fraction = 1, seconds = 0;
  int64_t tokens = 0;
  nlohmann::json experts;
};

// Consecutive windows of seq_len (GPTQ protocol); with a stride, overlapping ones that score every token once.
std::vector<ScoredWindow> cut_windows(const std::vector<int32_t>& tokens, const Job& job) {
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

Evaluated evaluate_model(const std::string& path, const std::string& adapter, const Job& job, Session& session) {
  const Checkpoint checkpoint = session.open_model(path, adapter);
  const std::vector<int32_t> tokens = read_tokens(load_tokenizer(path), job.datasets, job.text_format);
  const std::vector<ScoredWindow> windows = cut_windows(tokens, job);
  ExpertGroups groups(job.experts, checkpoint, session.world());
  const Transformer model(checkpoint, session.backend(), parse_dtype(job.dtype), Transformer::LoadFfn::yes, groups.parallel());
  Evaluated evaluated{.model = adapter.empty() ? path : path + " + " + adapter};
  for (const ScoredWindow& window : windows) evaluated.tokens += static_cast<int64_t>(window.tokens.size());
  ExpertCounter counter(checkpoint.config);
  Progress progress(std::filesystem::path(path).filename().string(), evaluated.tokens, "tokens");
  Timer timer;
  evaluated.result =
      evaluate_perplexity(model, windows, session.world(), groups.observer(&counter), [&](int64_t n) { progress.advance(n); });
  evaluated.seconds = timer.seconds();
  progress.finish();
  counter.reduce(session.world());
  groups.report(path, session.world());
  evaluated.active_fraction = counter.active_fraction();
  evaluated.experts = counter.to_json();
  return evaluated;
}

// From the headers alone. A window's keys and values are kept for one layer at a time.
void print_plan(const Job& job, Session& session) {
  const int ranks = job.experts.group_size(session.world());
  for (const std::string& path : job.models) {
    const Checkpoint checkpoint = open_checkpoint(path);
    const ModelConfig& config = checkpoint.config;
    if (session.is_root()) {
      print_expert_plan(job.experts, checkpoint, parse_dtype(job.dtype), ranks,
                        KvCache::bytes(config, job.seq_len) / config.num_hidden_layers, activation_bytes(config, job.seq_len));
    }
  }
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

// Appends what was measured to the README.md of every folder that cmoe wrote.
void update_cards(const std::vector<Evaluated>& all, const Job& job) {
  for (const Evaluated& one : all) {
    const std::string path = one.model + "/README.md";
    if (!std::filesystem::exists(one.model + "/manifest.json") || !std::filesystem::exists(path)) continue;
    std::string card = read_file(path);
    const std::string_view heading = "\n## Measured perplexity\n";
    if (card.find(heading) == std::string::npos)
      card += std::string(heading) + "\n| text | windows | active FFN | perplexity | nats per token |\n|---|---|---|---|---|\n";
    std::string texts;
    for (const std::string& dataset : job.datasets)
      texts += (texts.empty() ? "" : ", ") + std::filesystem::path(dataset).filename().string();
    card += fmt::format("| {} | {} x {} | {:.3f} | {:.3f} | {:.4f} +- {:.4f} |\n", texts, one.result.nll.size(), job.seq_len,
                        one.active_fraction, one.result.perplexity(), one.result.mean(), one.result.stderr_of_mean());
    write_file_atomically(path, card);
  }
}

}  // namespace

int evaluate(int argc, char** argv, Environment& environment) {
  Session session(environment);
  Job job;
  Options options("cmoe evaluate",
                  "Scores one or several models on the same text; differences are to the first model, window by window.");
  options.add("perplexity", &job.perplexity, "mean negative log-likelihood and perplexity");
  options.add("model", &job.models, "Hugging Face folder, GGUF file, or a folder that cmoe wrote; may be repeated");
  options.add("adapter", &job.adapters, "LoRA adapter of each --model, in their order; none for a model without one");
  options.add("dataset", &job.datasets, "text file (plain, .jsonl, WikiText raw; .gz); may be repeated");
  options.add_choice("text-format", &job.text_format, {"auto", "plain", "jsonl", "wikitext"}, "how to read the text");
  options.add("seq-len", &job.seq_len, "tokens of a window", {.least = 2});
  options.add("windows", &job.windows, "windows at most; 0 scores all", {.least = 0});
  options.add("stride", &job.stride, "overlapping windows that advance by this many tokens; 0 for windows that do not overlap",
              {.least = 0});
  options.add_choice("dtype", &job.dtype, {"f32", "bf16"}, "type of the weights while running");
  options.add("json", &job.json, "write the result to this file");
  options.add("expert-stats", &job.expert_stats, "write tokens per expert and layer to this JSON file");
  options.add("update-card", &job.update_card, "add the figures to the README.md of carved folders");
  options.require("model");
  options.require("dataset");
  job.experts.declare(options);
  session.declare(options);
  if (!session.parse(options, argc, argv)) return 0;
  CMOE_CHECK(job.perplexity, "evaluate: say what to measure; expected --perplexity");

  if (job.experts.dry_run) {
    print_plan(job, session);
    return 0;
  }
  CMOE_CHECK(job.models.size() == 1 || (job.experts.moe_stats.empty() && job.experts.trace.empty()),
             "evaluate: --moe-stats and --trace with {} models; expected one model, whose layers they tell of",
             job.models.size());
  std::vector<Evaluated> all;
  CMOE_CHECK(job.adapters.empty() || job.adapters.size() == job.models.size(),
             "evaluate: {} adapters for {} models; expected one for each, 'none' where a model has none", job.adapters.size(),
             job.models.size());
  for (size_t i = 0; i < job.models.size(); ++i) {
    const std::string& model = job.models[i];
    const bool adapted = !job.adapters.empty() && job.adapters[i] != "none";
    all.push_back(evaluate_model(model, adapted ? job.adapters[i] : "", job, session));
    CMOE_CHECK(all.back().result.nll.size() == all[0].result.nll.size(),
               "evaluate: {} gives {} windows and {} gives {}: their tokenizers differ, so they cannot be compared in one call",
               model, all.back().result.nll.size(), job.models[0], all[0].result.nll.size());
  }
  if (session.is_root()) {
    std::fputs(comparison(all).c_str(), stdout);
    if (!job.json.empty()) {
      nlohmann::ordered_json json = to_json(all);
      json["options"] = options.effective_config();
      write_file_atomically(job.json, json.dump(2) + "\n");
    }
    if (!job.expert_stats.empty()) {
      nlohmann::ordered_json json;
      for (const Evaluated& one : all) json["models"].push_back({{"model", one.model}, {"experts", one.experts}});
      write_file_atomically(job.expert_stats, json.dump(1) + "\n");
    }
    if (job.update_card) update_cards(all, job);
  }
  return 0;
}

}  // namespace cmoe::jobs

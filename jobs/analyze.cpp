// cmoe analyze: what the experts of a carved model have in common, and how its routers choose.

#include <cstdio>
#include <optional>

#include "analysis/report.h"
#include "base/atomic_file.h"
#include "base/error.h"
#include "base/log.h"
#include "base/output_directory.h"
#include "base/progress.h"
#include "base/stage.h"
#include "comm/stop.h"
#include "data/load_tokenizer.h"
#include "data/windows.h"
#include "jobs/jobs.h"
#include "jobs/session.h"

namespace cmoe::jobs {
namespace {

struct Job {
  std::string model, adapter, text_format = "auto", dtype = "f32", out, prompt = "As an open source alternative to";
  std::vector<std::string> datasets;
  int64_t seq_len = 512, windows = 4, match_layers = 4;
  bool force = false;
};

// Layer l is one of `count` that spread evenly from the first to the last.
bool is_matched(int64_t layer, int64_t layers, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (layer == (count == 1 ? 0 : i * (layers - 1) / (count - 1))) return true;
  }
  return false;
}

// Layers are divided over the ranks. Collective.
std::vector<ExpertWeights> analyze_weights(const Checkpoint& checkpoint, const Job& job, Session& session) {
  Communicator& world = session.world();
  const int64_t layers = checkpoint.config.num_hidden_layers;
  std::vector<ExpertWeights> all;
  Progress progress("weights", layers, "layers");
  for (int64_t first = 0; first < layers; first += world.size()) {
    const int64_t l = first + world.rank();
    set_stage("analyze", l);
    stop_together(world, "analyze");
    std::string mine;
    if (l < layers)
      mine = to_json(analyze_expert_weights(checkpoint, *session.backend(), l, is_matched(l, layers, job.match_layers))).dump();
    for (const std::string& text : world.all_gather_strings(mine)) {
      if (!text.empty()) all.push_back(expert_weights_from_json(nlohmann::json::parse(text)));
    }
    progress.advance(std::min<int64_t>(world.size(), layers - first));
  }
  progress.finish();
  return all;
}

void analyze_text(const Checkpoint& checkpoint, const Job& job, Session& session, MoeAnalysis& analysis) {
  const Tokenizer tokenizer = load_tokenizer(job.model);
  std::vector<int32_t> tokens;
  std::vector<std::span<const int32_t>> windows;
  if (!job.datasets.empty()) {
    tokens = read_tokens(tokenizer, job.datasets, job.text_format);
    for (const int64_t offset : consecutive_offsets(static_cast<int64_t>(tokens.size()), job.seq_len, job.windows))
      windows.push_back(std::span(tokens).subspan(static_cast<size_t>(offset), static_cast<size_t>(job.seq_len)));
  }
  const std::vector<int32_t> prompt = tokenizer.encode(job.prompt);
  if (windows.empty() && prompt.empty()) return;
  Progress progress("text", checkpoint.config.num_hidden_layers, "layers");
  OutputAnalysis found = analyze_expert_outputs(checkpoint, session.backend(), parse_dtype(job.dtype), windows, prompt,
                                                session.world(), [&] { progress.advance(1); });
  progress.finish();
  if (!windows.empty()) analysis.outputs = std::move(found.layers);
  analysis.prompt_routing = std::move(found.prompt);
  for (const int32_t id : prompt) analysis.prompt.push_back(tokenizer.decode(std::span(&id, 1)));
}

}  // namespace

int analyze(int argc, char** argv, Environment& environment) {
  Session session(environment);
  Job job;
  Options options(
      "cmoe analyze",
      "Measures a carved model as \"A Closer Look into Mixture-of-Experts\" does: similarity of the experts' weights and "
      "outputs, routers against experts, output norms against scores.");
  options.add("model", &job.model, "folder of a carved model");
  options.add("adapter", &job.adapter, "LoRA adapter of the model; none by default");
  options.add("dataset", &job.datasets,
              "text on which the experts run; may be repeated. Without one weights alone are measured");
  options.add_choice("text-format", &job.text_format, {"auto", "plain", "jsonl", "wikitext"}, "how to read the text");
  options.add("seq-len", &job.seq_len, "tokens of a window", {.least = 1});
  options.add("windows", &job.windows, "windows at most; 0 takes all", {.least = 0});
  options.add("prompt", &job.prompt, "a short text whose routing is shown token by token; may be empty");
  options.add(
      "match-layers", &job.match_layers,
      "layers, spread from the first to the last, whose neurons are matched one to one; 0 for none. The work grows with the "
      "cube of an expert's neurons",
      {.least = 0});
  options.add_choice("dtype", &job.dtype, {"f32", "bf16"}, "type of the weights while running");
  options.add("out", &job.out, "folder for analysis.json and report.html");
  options.add("force", &job.force, "replace an existing folder");
  options.require("model");
  options.require("out");
  session.declare(options);
  if (!session.parse(options, argc, argv)) return 0;

  const Checkpoint checkpoint = session.open_model(job.model, job.adapter);
  CMOE_CHECK(checkpoint.config.moe && checkpoint.config.moe->num_routed_experts() > 0,
             "{}: has no routed experts; analyze takes a carved model", job.model);
  std::optional<OutputDirectory> folder;
  if (session.is_root()) folder.emplace(job.out, job.force);
  MoeAnalysis analysis{.model = job.adapter.empty() ? job.model : job.model + " + " + job.adapter};
  analysis.weights = analyze_weights(checkpoint, job, session);
  analyze_text(checkpoint, job, session, analysis);
  if (!session.is_root()) return 0;
  std::fputs(summary_table(analysis).c_str(), stdout);
  nlohmann::json json = to_json(analysis);
  json["options"] = options.effective_config();
  write_file_atomically(folder->work_path() + "/analysis.json", json.dump() + "\n");
  write_file_atomically(folder->work_path() + "/report.html", html_report(analysis));
  folder->commit();
  log_info("report in {}/report.html, all values in {}/analysis.json", job.out, job.out);
  return 0;
}

}  // namespace cmoe::jobs

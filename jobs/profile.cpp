// cmoe profile: record FFN activations of a dense model on calibration text.

#include "carve/profile.h"

#include <cstdio>
#include <filesystem>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/format.h"
#include "base/log.h"
#include "base/sha256.h"
#include "base/version.h"
#include "data/load_tokenizer.h"
#include "data/windows.h"
#include "jobs/jobs.h"
#include "jobs/session.h"
#include "model/fingerprint.h"

namespace cmoe::jobs {
namespace {

struct Job {
  std::string model, text_format = "auto", window_offsets, dtype = "f32", out;
  std::vector<std::string> datasets;
  int64_t samples = 8, seq_len = 2048, seed = 0, k_act = 10;
  bool dry_run = false, force = false;
};

// [samples, seq_len] token ids: windows at random offsets, or at given ones.
std::vector<int32_t> calibration_tokens(const std::vector<int32_t>& tokens, const Job& job) {
  const auto count = static_cast<int64_t>(tokens.size());
  const std::vector<int64_t> offsets = job.window_offsets.empty()
                                           ? random_offsets(count, job.seq_len, job.samples, static_cast<uint64_t>(job.seed))
                                           : read_offsets(job.window_offsets, count, job.seq_len);
  CMOE_CHECK(static_cast<int64_t>(offsets.size()) >= job.samples, "{}: {} offsets; expected at least --samples {}",
             job.window_offsets, offsets.size(), job.samples);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < job.samples; ++i) {
    const auto first = tokens.begin() + offsets[static_cast<size_t>(i)];
    ids.insert(ids.end(), first, first + job.seq_len);
  }
  return ids;
}

void print_plan(const Job& job, const ModelConfig& config, Communicator& world) {
  const int64_t tokens = job.samples * job.seq_len, ranks = world.size();
  const int64_t local = (job.samples + ranks - 1) / ranks * job.seq_len;
  const int64_t d = config.hidden_size, f = config.intermediate_size, layers = config.num_hidden_layers;
  const int64_t attention = 2 * d * (config.num_attention_heads + config.num_key_value_heads) * config.head_dim;
  const int64_t weight_size = size_of(parse_dtype(job.dtype));
  const int64_t weights = (layers * attention + 3 * d * f + 2 * config.vocab_size * d) * weight_size;
  Table plan({"plan", "value"});
  plan.add_row({"calibration tokens", format_count(tokens)});
  plan.add_row({"tokens on the busiest of " + std::to_string(ranks) + " ranks", format_count(local)});
  plan.add_row(
      {"work per rank", fmt::format("{:.1f} TFLOP", 2e-12 * static_cast<double>(local * layers * (attention + 3 * d * f)))});
  plan.add_row({"memory per rank: weights (one FFN at a time)", format_bytes(weights)});
  plan.add_row({"memory per rank: activations", format_bytes(4 * local * (4 * d + f))});
  plan.add_row({"bytes all-reduced per rank", format_bytes(layers * f * 8 * 5)});
  const int64_t data = layers * (2 * tokens * job.k_act * (f <= 65536 ? 2 : 4) + f * 40) + tokens * 4;
  plan.add_row({job.out, fmt::format("{} bytes of data ({})", data, format_bytes(data))});
  std::fputs(plan.text().c_str(), stdout);
}

}  // namespace

int profile(int argc, char** argv, Environment& environment) {
  Session session(environment);
  Job job;
  Options options("cmoe profile",
                  "Runs a dense model over calibration text and records which FFN neurons each token activates most.");
  options.add("model", &job.model, "Hugging Face folder or GGUF file");
  options.add("dataset", &job.datasets, "text file (plain, .jsonl, WikiText raw; .gz); may be repeated");
  options.add_choice("text-format", &job.text_format, {"auto", "plain", "jsonl", "wikitext"}, "how to read the text");
  options.add("samples", &job.samples, "calibration sequences", {.least = 1});
  options.add("seq-len", &job.seq_len, "tokens of a sequence", {.least = 2});
  options.add("seed", &job.seed, "of the random window offsets", {.least = 0});
  options.add("window-offsets", &job.window_offsets, "file with one start position (in tokens) a line, instead of random ones");
  options.add("k-act", &job.k_act, "neurons that a token marks: those with the largest |h|", {.least = 1});
  options.add_choice("dtype", &job.dtype, {"f32", "bf16"}, "type of the weights while running");
  options.add("out", &job.out, "profile to write (HDF5)");
  options.add("force", &job.force, "replace an existing profile");
  options.add("dry-run", &job.dry_run, "print work, memory and files, and stop");
  options.require("model");
  options.require("dataset");
  options.require("out");
  session.declare(options);
  if (!session.parse(options, argc, argv)) return 0;

  const Checkpoint checkpoint = session.open_model(job.model);
  CMOE_CHECK(!checkpoint.config.moe, "{}: is carved already; profile takes a dense model", job.model);
  CMOE_CHECK(job.k_act <= checkpoint.config.intermediate_size, "--k-act {}: more than the {} neurons of a layer", job.k_act,
             checkpoint.config.intermediate_size);
  if (job.dry_run) {
    if (session.is_root()) print_plan(job, checkpoint.config, session.world());
    return 0;
  }
  CMOE_CHECK(job.force || !std::filesystem::exists(job.out), "{}: exists; pass --force to replace it", job.out);

  const std::vector<int32_t> tokens = read_tokens(load_tokenizer(job.model), job.datasets, job.text_format);
  const std::vector<int32_t> calibration = calibration_tokens(tokens, job);
  Provenance provenance{.model = job.model,
                        .model_hash = model_fingerprint(checkpoint),
                        .datasets = {},
                        .options = options.effective_config(),
                        .version = version_string(),
                        .dtype = job.dtype,
                        .ranks = session.world().size()};
  for (const std::string& path : job.datasets) {
    provenance.datasets += std::filesystem::path(path).filename().string() + " " + sha256_of_file(path) + "\n";
  }
  run_profile(checkpoint, session.backend(), calibration, job.seq_len, {.k_act = job.k_act, .dtype = parse_dtype(job.dtype)},
              std::move(provenance), session.world(), job.out);
  if (session.is_root()) {
    write_file_atomically(job.out + ".cfg", options.effective_config());
    log_info("profile written to {} ({})", job.out, format_bytes(static_cast<int64_t>(std::filesystem::file_size(job.out))));
  }
  return 0;
}

}  // namespace cmoe::jobs

// The files of a carved folder beside its weights.

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/read_file.h"
#include "base/sha256.h"
#include "base/version.h"
#include "carve/export.h"
#include "data/load_tokenizer.h"
#include "model/export/python_sources.h"

namespace cmoe {
namespace {

namespace fs = std::filesystem;

// Files that a Hugging Face folder may carry beside its weights, copied as they stand.
constexpr const char* kCopied[] = {
    "tokenizer.json",  "tokenizer_config.json", "special_tokens_map.json", "vocab.json",       "merges.txt",
    "tokenizer.model", "chat_template.jinja",   "generation_config.json",  "added_tokens.json"};

std::string generation_config(const ModelConfig& config) {
  nlohmann::ordered_json json{{"_from_model_config", true}};
  if (config.bos_token_id) json["bos_token_id"] = *config.bos_token_id;
  if (config.eos_token_ids.size() == 1) json["eos_token_id"] = config.eos_token_ids[0];
  if (config.eos_token_ids.size() > 1) json["eos_token_id"] = config.eos_token_ids;
  return json.dump(2) + "\n";
}

}  // namespace

void write_companion_files(const Checkpoint& dense, const ModelConfig& config, const std::string& folder,
                           const std::vector<std::string>& weight_files, const std::string& card,
                           const std::string& effective_options, const ExpertLoads& loads) {
  std::vector<std::string> files = weight_files;
  const auto write = [&](const std::string& name, std::string_view content) {
    write_file_atomically(folder + "/" + name, content);
    files.push_back(name);
  };
  write("config.json", config.to_json().dump(2) + "\n");
  if (config.moe) {
    write("modeling_cmoe.py", modeling_source());
    write("configuration_cmoe.py", configuration_source());
  }
  write("README.md", card);
  write("cmoe.cfg", effective_options);
  if (!loads.layers.empty() && !loads.layers[0].empty()) write(kExpertLoadsFile, loads.to_json_text());
  if (fs::is_directory(dense.path)) {
    for (const char* name : kCopied) {
      if (fs::exists(dense.path / name)) write(name, read_file((dense.path / name).string()));
    }
  } else {
    const Tokenizer tokenizer = load_tokenizer(dense.path.string());
    write("tokenizer.json", tokenizer.to_json());
    write("tokenizer_config.json", tokenizer.config_json());
  }
  if (!fs::exists(fs::path(folder) / "generation_config.json")) write("generation_config.json", generation_config(config));

  nlohmann::ordered_json manifest{{"format", "cmoe-model-1"}, {"version", version_string()}};
  for (const std::string& name : files) {
    const std::string path = folder + "/" + name;
    manifest["files"].push_back({{"name", name}, {"bytes", fs::file_size(path)}, {"sha256", sha256_of_file(path)}});
  }
  write_file_atomically(folder + "/manifest.json", manifest.dump(2) + "\n");
}

std::string model_card(const Checkpoint& dense, const Profile& profile, const CarveOptions& options,
                       const CarveSummary& summary) {
  const Provenance& from = profile.provenance();
  std::string card = fmt::format(
      "---\nlibrary_name: transformers\ntags: [mixture-of-experts, cmoe]\n---\n\n# {} carved to {}\n\n"
      "A Mixture-of-Experts made from the dense model `{}` by cmoe {}: the FFN neurons of every layer are divided into a "
      "shared expert and\n"
      "routed experts; a router chooses a set of experts per token. Load it with\n"
      "`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` or run it with `cmoe generate --model "
      "folder`.\n\n",
      dense.path.filename().string(), to_string(options.shape), dense.path.filename().string(), version_string());
  card += "| | |\n|---|---|\n";
  const auto row = [&](std::string_view key, const std::string& value) { card += fmt::format("| {} | {} |\n", key, value); };
  row("experts", fmt::format("{} shared, {} routed, {} active of the routed in the mean", options.shape.shared,
                             options.shape.routed(), options.shape.active));
  row("recipe", options.recipe.name);
  row("active share of FFN neurons (calibration)", fmt::format("{:.4f}", summary.active_fraction));
  row("calibration", fmt::format("{} sequences of {} tokens", profile.sequences(), profile.sequence_length()));
  row("loss on the calibration tokens, dense",
      fmt::format("{:.4f} nats per token (perplexity {:.3f})", profile.dense_nll(), std::exp(profile.dense_nll())));
  if (std::isfinite(summary.calibration_nll)) {
    row("loss on the calibration tokens, carved",
        fmt::format("{:.4f} nats per token (perplexity {:.3f})", summary.calibration_nll, std::exp(summary.calibration_nll)));
  }
  card +=
      "\nThe calibration tokens are those the carve was fitted to; `cmoe evaluate --update-card` adds figures on held-out text "
      "below.\n";
  card += "\n## Recipe\n\n```\n" + options.recipe.describe() + "```\n";
  card += fmt::format(
      "\n## Provenance\n\n- dense model fingerprint: `{}`\n- profile made by cmoe {} on {} rank(s) in {:.1f} s, {}\n- texts:\n",
      from.model_hash, from.version, from.ranks, from.seconds, from.dtype);
  size_t begin = 0;
  while (begin < from.datasets.size()) {
    const size_t end = std::min(from.datasets.find('\n', begin), from.datasets.size());
    if (end > begin) card += fmt::format("  - `{}`\n", from.datasets.substr(begin, end - begin));
    begin = end + 1;
  }
  return card;
}

}  // namespace cmoe

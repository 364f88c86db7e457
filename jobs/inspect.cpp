// cmoe inspect: what a checkpoint, a carved model or a profile holds.

#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/format.h"
#include "carve/profile.h"
#include "jobs/jobs.h"
#include "jobs/session.h"
#include "model/describe.h"

namespace cmoe::jobs {
namespace {

using nlohmann::json;

std::string percent(double fraction) { return fmt::format("{:.1f} %", 100 * fraction); }

json describe_profile(const std::string& path) {
  const Profile profile = Profile::open(path);
  const Provenance& from = profile.provenance();
  return {{"path", path},
          {"format", "profile"},
          {"layers", profile.layers()},
          {"neurons", profile.neurons()},
          {"k_act", profile.k_act()},
          {"sequences", profile.sequences()},
          {"sequence_length", profile.sequence_length()},
          {"dense_nll", profile.dense_nll()},
          {"model", from.model},
          {"model_hash", from.model_hash},
          {"datasets", from.datasets},
          {"options", from.options},
          {"version", from.version},
          {"dtype", from.dtype},
          {"seconds", from.seconds},
          {"ranks", from.ranks}};
}

void print_profile(const json& profile) {
  Table table({"profile", profile["path"].get<std::string>()});
  table.add_row({"model", profile["model"].get<std::string>()});
  table.add_row(
      {"layers x neurons", fmt::format("{} x {}", profile["layers"].get<int64_t>(), profile["neurons"].get<int64_t>())});
  table.add_row({"tokens", fmt::format("{} sequences of {}", profile["sequences"].get<int64_t>(),
                                       profile["sequence_length"].get<int64_t>())});
  table.add_row({"markers per token and layer", profile["k_act"].dump()});
  table.add_row({"dense loss (nats per token)", fmt::format("{:.4f}", profile["dense_nll"].get<double>())});
  table.add_row(
      {"computed in", fmt::format("{} on {} rank(s), {}", profile["dtype"].get<std::string>(), profile["ranks"].get<int64_t>(),
                                  format_duration(profile["seconds"].get<double>()))});
  table.add_row({"version", profile["version"].get<std::string>()});
  std::fputs(table.text().c_str(), stdout);
  std::printf("\ntexts (name, SHA-256)\n%s\n", profile["datasets"].get<std::string>().c_str());
}

void print_checkpoint(const json& model) {
  const json& config = model["config"];
  const json& parameters = model["parameters"];
  const auto integer = [](const json& value) { return format_count(value.get<int64_t>()); };
  Table table({"model", model["path"].get<std::string>()});
  table.add_row(
      {"architecture", fmt::format("{} ({})", config["model_type"].get<std::string>(), model["format"].get<std::string>())});
  table.add_row({"layers", integer(config["num_hidden_layers"])});
  table.add_row({"hidden size", integer(config["hidden_size"])});
  table.add_row({"FFN neurons per layer", integer(config["intermediate_size"])});
  table.add_row(
      {"attention heads", fmt::format("{} of {}, {} for keys and values", config["num_attention_heads"].get<int64_t>(),
                                      config["head_dim"].get<int64_t>(), config["num_key_value_heads"].get<int64_t>())});
  table.add_row(
      {"vocabulary", integer(config["vocab_size"]) + (config["tie_word_embeddings"].get<bool>() ? ", tied head" : "")});
  table.add_row({"positions", integer(config["max_position_embeddings"])});
  if (model.contains("experts")) {
    table.add_row({"experts", fmt::format("{}, {} neurons each", model["experts"].get<std::string>(),
                                          config["moe_intermediate_size"].get<int64_t>())});
    table.add_row({"router", fmt::format("{}, {}", config["router_type"].get<std::string>(),
                                         config["router_selector"].get<std::string>())});
    table.add_row({"FFN neurons active", percent(model["active_fraction"].get<double>())});
  }
  table.add_row({"parameters", integer(parameters["total"])});
  table.add_row({"in the FFN", fmt::format("{} ({})", integer(parameters["ffn"]), percent(model["ffn_share"].get<double>()))});
  table.add_row({"in attention", integer(parameters["attention"])});
  table.add_row({"in embeddings", integer(parameters["embedding"])});
  table.add_row({"stored", format_bytes(model["stored_bytes"].get<int64_t>())});
  std::fputs(table.text().c_str(), stdout);

  Table types({"stored type", "tensors", "parameters", "size"});
  for (const auto& [type, total] : model["types"].items()) {
    types.add_row({type, integer(total["tensors"]), integer(total["parameters"]), format_bytes(total["bytes"].get<int64_t>())});
  }
  std::printf("\n%s", types.text().c_str());
}

}  // namespace

int inspect(int argc, char** argv, Environment& environment) {
  Session session(environment);
  std::string path;
  bool as_json = false;
  Options options("cmoe inspect", "Shows a checkpoint (Hugging Face folder, GGUF file), a carved model or a profile.");
  options.positional("path", &path, "what to show");
  options.add("json", &as_json, "as JSON");
  session.declare(options);
  if (!session.parse(options, argc, argv) || !session.is_root()) return 0;
  const bool is_profile = path.ends_with(".h5") || path.ends_with(".hdf5");
  const json description = is_profile ? describe_profile(path) : describe_checkpoint(open_checkpoint(path));
  if (as_json) {
    std::printf("%s\n", description.dump(2).c_str());
  } else if (is_profile) {
    print_profile(description);
  } else {
    print_checkpoint(description);
  }
  return 0;
}

}  // namespace cmoe::jobs

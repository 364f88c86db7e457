// cmoe carve: turn a profiled dense model into a Mixture-of-Experts.

#include <cmath>
#include <cstdio>
#include <filesystem>

#include "base/error.h"
#include "base/format.h"
#include "base/log.h"
#include "base/output_directory.h"
#include "base/timer.h"
#include "carve/export.h"
#include "carve/profile.h"
#include "carve/walk.h"
#include "jobs/jobs.h"
#include "jobs/session.h"

namespace cmoe::jobs {
namespace {

struct Job {
  std::string model, profile, experts, recipe = "best", out, dtype = "f32", out_dtype = "auto";
  // Single choices of a recipe; empty leaves the recipe's.
  std::string marker, score, partition, representative, router, selector, compensation, calibration;
  double router_lambda = -1, refit_lambda = -1;
  int64_t iterations = -1, energy_rounds = -1, seed = 0, shard_mb = 4096;
  bool force = false, dry_run = false;
};

Recipe chosen_recipe(const Job& job) {
  Recipe recipe = recipe_by_name(job.recipe);
  if (!job.marker.empty()) recipe.marker = parse_marker(job.marker);
  if (!job.score.empty()) recipe.score = parse_score(job.score);
  if (!job.partition.empty()) recipe.partition = parse_partition(job.partition);
  if (!job.representative.empty()) recipe.representative = parse_representative(job.representative);
  if (!job.router.empty()) recipe.router = parse_router_kind(job.router);
  if (!job.selector.empty()) recipe.selector = parse_selector(job.selector);
  if (!job.compensation.empty()) recipe.compensation = parse_compensation(job.compensation);
  if (!job.calibration.empty()) recipe.calibration = parse_calibration(job.calibration);
  if (job.router_lambda >= 0) recipe.router_lambda = job.router_lambda;
  if (job.refit_lambda >= 0) recipe.refit_lambda = job.refit_lambda;
  if (job.iterations >= 0) recipe.iterations = job.iterations;
  if (job.energy_rounds >= 0) recipe.energy_rounds = job.energy_rounds;
  return recipe;
}

// Quantised and f32 inputs give f32, as a refit leaves values that 16 bits do not hold; 16-bit inputs keep their type.
DType output_dtype(const Job& job, const Checkpoint& dense) {
  if (job.out_dtype == "f32") return DType::f32;
  if (job.out_dtype == "f16") return DType::f16;
  if (job.out_dtype == "bf16") return DType::bf16;
  const std::string stored = dense.tensors->stored_type("model.layers.0.mlp.down_proj.weight");
  return stored == "BF16" ? DType::bf16 : stored == "F16" ? DType::f16 : DType::f32;
}

void print_plan(const CarveOptions& carve, const Profile& profile, const ModelConfig& dense, const ModelConfig& carved,
                DType out_dtype, int64_t shard_bytes, const std::string& out, Communicator& world) {
  const int64_t d = dense.hidden_size, f = dense.intermediate_size, ranks = world.size();
  const int64_t local = (profile.sequences() + ranks - 1) / ranks * profile.sequence_length();
  const bool alone = carve.recipe.from_profile_alone();
  const bool refit = carve.recipe.compensation == Compensation::refit,
             linear = carve.recipe.router == RouterKind::linear && carve.recipe.routed;
  Table plan({"plan", "value"});
  plan.add_row({"recipe", carve.recipe.name + ", " + to_string(carve.shape)});
  plan.add_row({"neurons per expert", format_count(f / carve.shape.experts)});
  plan.add_row({"walk", alone ? fmt::format("layers independent, {} on the busiest of {} ranks",
                                            (dense.num_hidden_layers + ranks - 1) / ranks, ranks)
                              : fmt::format("{} layers in order, {} tokens on the busiest of {} ranks", dense.num_hidden_layers,
                                            format_count(local), ranks)});
  int64_t memory =
      alone ? 3 * d * f * 4 + profile.sequences() * profile.sequence_length() * profile.k_act() * 4
            : local * (5 * d + 3 * f) * 4 + 6 * d * f * 4 + (refit ? f * (f + d) * 24 : 0) + (linear ? d * d * 20 : 0);
  plan.add_row({"memory per rank beside the attention weights", format_bytes(memory)});
  const int64_t wire = alone ? 0 : (refit ? f * f + f * d : 0) + (linear ? d * d : 0) + 5 * f;
  plan.add_row({"bytes all-reduced per rank and layer", format_bytes(8 * wire)});
  for (const PlannedFile& file : plan_files(carved, out_dtype, shard_bytes)) {
    plan.add_row({out + "/" + file.name, fmt::format("{} bytes ({})", file.bytes, format_bytes(file.bytes))});
  }
  std::fputs(plan.text().c_str(), stdout);
}

}  // namespace

int carve(int argc, char** argv, Environment& environment) {
  Session session(environment);
  Job job;
  Options options("cmoe carve",
                  "Carves the FFNs of a profiled dense model into shared and routed experts with an analytical router, and "
                  "writes a\nmodel folder that cmoe and transformers load.");
  options.add("model", &job.model, "the dense model: Hugging Face folder or GGUF file");
  options.add("profile", &job.profile, "file that cmoe profile wrote for this model");
  options.add("experts", &job.experts, "SxAyEz: x shared and y active routed of z experts, such as S3A3E8");
  options.add_choice("recipe", &job.recipe, recipe_names(), "preset of the choices below");
  options.add("marker", &job.marker, "raw or normalized activations");
  options.add("score", &job.score, "of shared neurons: activation_rate, mass, variance, index or random");
  options.add("partition", &job.partition,
              "of routed neurons: markers_l1, markers_squared_l2, markers_l2, cosine, contiguous or random");
  options.add("iterations", &job.iterations, "rounds of balanced assignment at most; -1 leaves the recipe's", {.least = -1});
  options.add("energy-rounds", &job.energy_rounds,
              "rounds that then move neurons so that what runs holds more energy, at most; 0 for none, -1 leaves the recipe's",
              {.least = -1});
  options.add("representative", &job.representative, "neuron that an analytical router reads: nearest or highest_rate");
  options.add("router", &job.router, "linear, analytical or authors");
  options.add("selector", &job.selector, "topk, or threshold (the mean number of active experts is kept)");
  options.add("router-lambda", &job.router_lambda, "ridge of the linear router; -1 leaves the recipe's");
  options.add("compensation", &job.compensation, "for dropped experts: none, mean or refit");
  options.add("refit-lambda", &job.refit_lambda, "ridge of the refit; -1 leaves the recipe's");
  options.add("calibration", &job.calibration, "what the next layer sees while carving: dense or carved output");
  options.add("seed", &job.seed, "of the random baseline", {.least = 0});
  options.add_choice("dtype", &job.dtype, {"f32", "bf16"}, "type of the weights in the forward pass");
  options.add_choice("out-dtype", &job.out_dtype, {"auto", "f32", "bf16", "f16"},
                     "type of the weights in the files; auto keeps 16-bit types");
  options.add("shard-mb", &job.shard_mb, "largest weight file, in MB", {.least = 1});
  options.add("out", &job.out, "folder to write");
  options.add("force", &job.force, "replace an existing folder");
  options.add("dry-run", &job.dry_run, "print work, memory and files, and stop");
  for (const char* name : {"model", "profile", "experts", "out"}) options.require(name);
  session.declare(options);
  if (!session.parse(options, argc, argv)) return 0;

  Communicator& world = session.world();
  const Checkpoint dense = session.open_model(job.model);
  CMOE_CHECK(!dense.config.moe, "{}: is carved already; carve takes a dense model", job.model);
  const Profile profile = Profile::open(job.profile);
  const CarveOptions carve{.recipe = chosen_recipe(job),
                           .shape = parse_expert_shape(job.experts, dense.config.intermediate_size),
                           .seed = static_cast<uint64_t>(job.seed),
                           .dtype = parse_dtype(job.dtype)};
  profile.check_model(dense);
  const ModelConfig config = carved_config(dense.config, carve.recipe, carve.shape);
  const DType out_dtype = output_dtype(job, dense);
  const int64_t shard_bytes = job.shard_mb * 1000000;
  if (job.dry_run) {
    if (session.is_root()) print_plan(carve, profile, dense.config, config, out_dtype, shard_bytes, job.out, world);
    return 0;
  }

  Timer timer;
  std::unique_ptr<OutputDirectory> output;
  if (session.is_root()) output = std::make_unique<OutputDirectory>(job.out, job.force);
  const std::string folder = world.broadcast_string(output ? output->work_path() : "", 0);
  CarvedModelWriter writer(dense, config, out_dtype, shard_bytes, folder, world);
  const CarveSummary summary = carve_model(
      dense, session.backend(), profile, carve, world,
      [&](int64_t layer, const CarvedLayer& carved, const DenseFfnTensors& ffn) { writer.write_layer(layer, carved, ffn); });
  writer.copy_dense_tensors();
  const std::vector<std::string> weight_files = writer.finish();
  if (session.is_root()) {
    write_companion_files(dense, config, folder, weight_files, model_card(dense, profile, carve, summary),
                          options.effective_config(), summary.expert_loads);
    output->commit();
    log_info("{} carved by recipe '{}' in {} to {}: {} in {} file(s), {:.1f} % of FFN neurons active", to_string(carve.shape),
             carve.recipe.name, format_duration(timer.seconds()), job.out, format_bytes(writer.total_bytes()),
             writer.files().size(), 100 * summary.active_fraction);
    std::string stages;
    for (const auto& [stage, seconds] : summary.stage_seconds)
      stages += fmt::format("{}{} {:.1f} s", stages.empty() ? "" : ", ", stage, seconds);
    if (!stages.empty()) log_info("time by stage: {}", stages);
    if (std::isfinite(summary.energy_before)) {
      log_info("energy that a perfect router runs, mean of the layers: {:.2f} % before neurons moved, {:.2f} % after",
               100 * summary.energy_before, 100 * summary.energy_after);
    }
    if (std::isfinite(summary.calibration_nll)) {
      log_info("loss on the calibration tokens: dense {:.4f}, carved {:.4f} nats per token", profile.dense_nll(),
               summary.calibration_nll);
    }
  }
  world.barrier();
  return 0;
}

}  // namespace cmoe::jobs

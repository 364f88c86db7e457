// cmoe merge: write a model with its adapter merged into the weights.

#include <filesystem>

#include "base/error.h"
#include "base/format.h"
#include "base/log.h"
#include "base/output_directory.h"
#include "base/read_file.h"
#include "carve/export.h"
#include "jobs/jobs.h"
#include "jobs/session.h"
#include "model/adapter.h"

namespace cmoe::jobs {
namespace {

struct Job {
  std::string model, adapter, out, dtype = "auto";
  int64_t shard_mb = 4000;
  bool force = false;
};

DType output_dtype(const std::string& text, const ModelConfig& config) {
  const std::string name = text == "auto" ? config.dtype : text;
  if (name == "bf16" || name == "bfloat16") return DType::bf16;
  if (name == "f16" || name == "float16") return DType::f16;
  return DType::f32;
}

std::string merged_card(const Job& job) {
  const std::filesystem::path card = std::filesystem::path(job.model) / "README.md";
  std::string text = std::filesystem::exists(card)
                         ? read_file(card.string())
                         : fmt::format("# {}\n", std::filesystem::path(job.model).filename().string());
  return text + fmt::format("\n## Fine-tuning\n\nThe LoRA adapter `{}` is merged into these weights (`cmoe merge`).\n",
                            std::filesystem::path(job.adapter).filename().string());
}

}  // namespace

int merge(int argc, char** argv, Environment& environment) {
  Session session(environment);
  Job job;
  Options options("cmoe merge", "Writes a model folder with a LoRA adapter merged: W + scale B A, and the adapter's router.");
  options.add("model", &job.model, "the model that the adapter was trained on");
  options.add("adapter", &job.adapter, "folder of cmoe finetune, or of PEFT");
  options.add_choice("dtype", &job.dtype, {"auto", "f32", "bf16", "f16"},
                     "type of the weights in the files; auto keeps the model's");
  options.add("shard-mb", &job.shard_mb, "largest weight file, in MB", {.least = 1});
  options.add("out", &job.out, "folder to write");
  options.add("force", &job.force, "replace an existing folder");
  for (const char* name : {"model", "adapter", "out"}) options.require(name);
  session.declare(options);
  if (!session.parse(options, argc, argv)) return 0;

  Communicator& world = session.world();
  const Checkpoint merged = session.open_model(job.model, job.adapter);
  const DType dtype = output_dtype(job.dtype, merged.config);
  ModelConfig config = merged.config;
  config.dtype = dtype == DType::f32 ? "float32" : dtype == DType::f16 ? "float16" : "bfloat16";
  std::unique_ptr<OutputDirectory> output;
  if (session.is_root()) output = std::make_unique<OutputDirectory>(job.out, job.force);
  const std::string folder = world.broadcast_string(output ? output->work_path() : "", 0);
  CarvedModelWriter writer(merged, config, dtype, job.shard_mb * 1000000, folder, world);
  writer.copy_all_tensors();
  const std::vector<std::string> files = writer.finish();
  if (session.is_root()) {
    write_companion_files(merged, config, folder, files, merged_card(job), options.effective_config());
    output->commit();
    log_info("{} merged into {}: {} in {} file(s)", job.adapter, job.out, format_bytes(writer.total_bytes()), files.size());
  }
  world.barrier();
  return 0;
}

}  // namespace cmoe::jobs

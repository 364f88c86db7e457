// cmoe finetune: heal a carved model (or tune a dense one) with LoRA adapters, its router included.

#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/format.h"
#include "base/log.h"
#include "base/output_directory.h"
#include "base/progress.h"
#include "base/timer.h"
#include "data/load_tokenizer.h"
#include "data/windows.h"
#include "jobs/expert_options.h"
#include "jobs/jobs.h"
#include "jobs/session.h"
#include "jobs/step_log.h"
#include "model/fingerprint.h"
#include "train/adapter_files.h"
#include "train/training_state.h"

namespace cmoe::jobs {
namespace {

namespace fs = std::filesystem;

struct Job {
  std::string model, teacher, teacher_rows, out, text_format = "auto", dtype = "f32", recipe = "default";
  std::vector<std::string> datasets, eval_datasets;
  std::string lora_targets = "q,k,v,o,gate,up,down", distill = "none", schedule = "cosine", balance = "sign";
  int64_t samples = 256, seq_len = 1024, seed = 0, batch_size = 2, rank = 8, expert_rank = 0, warmup_steps = 0;
  int64_t save_every = 50, adapter_every = 0, eval_every = 0, eval_windows = 8, threshold_samples = 64;
  double alpha = 32, dropout = 0.1, lr = 5.95e-5, scale_lr = 1e-3, router_lr = 1e-3, weight_decay = 0, clip = 1;
  double nll_weight = 1, distill_weight = 1, temperature = 1, gamma = 1e-3, threshold_rate = 0.1, router_regression = 0;
  bool rslora = false, no_router_scale = false, train_router = false, recompute = false, documents = false, resume = false;
};

void declare(Options& options, Job& job) {
  options.add("model", &job.model, "folder of the carved (or dense) model");
  options.add("dataset", &job.datasets, "text file (plain, .jsonl, WikiText raw; .gz); may be repeated");
  options.add_choice("text-format", &job.text_format, {"auto", "plain", "jsonl", "wikitext"}, "how to read the text");
  options.add("samples", &job.samples, "training sequences, drawn at random; 0 takes the whole text once, in order",
              {.least = 0});
  options.add("seq-len", &job.seq_len, "tokens of a sequence", {.least = 2});
  options.add("seed", &job.seed, "of samples, adapters and dropout", {.least = 0});
  options.add("documents", &job.documents, "a token sees its own document only (they end with the end-of-text token)");
  options.add_choice(
      "recipe", &job.recipe, {"default", "authors"},
      "authors: what their code does (router scale frozen at 0, selection bias not kept, plain Adam at 5.65e-5)");
  options.add("lora-targets", &job.lora_targets, "projections with adapters, of q,k,v,o,gate,up,down");
  options.add("lora-rank", &job.rank, "rank of the adapters", {.least = 1, .most = 1024});
  options.add("expert-rank", &job.expert_rank, "rank of the routed experts' adapters; 0 takes lora-rank",
              {.least = 0, .most = 1024});
  options.add("lora-alpha", &job.alpha, "adapters are scaled by alpha / rank", {.least = 0});
  options.add("rslora", &job.rslora, "scale by alpha / sqrt(rank) instead");
  options.add("lora-dropout", &job.dropout, "of the adapters' inputs", {.least = 0, .most = 0.9});
  options.add("no-router-scale", &job.no_router_scale, "do not train the router scale u in g = 1 + softmax(s) u");
  options.add("train-router", &job.train_router, "train the router's projections, too");
  options.add("router-regression", &job.router_regression,
              "weight of (score - norm of the expert's output)^2 on a trained linear router", {.least = 0});
  options.add_choice("balance", &job.balance, {"none", "sign", "proportional"}, "how the selection bias follows the loads");
  options.add("balance-gamma", &job.gamma, "its step", {.least = 0});
  options.add("threshold-rate", &job.threshold_rate, "how fast thresholds follow the budget of active experts",
              {.least = 0, .most = 1});
  options.add("threshold-samples", &job.threshold_samples,
              "training sequences over which the thresholds of a written adapter meet the budget exactly, without dropout; 0 "
              "keeps the running ones",
              {.least = 0});
  options.add("teacher", &job.teacher, "dense model to distil from");
  options.add(
      "teacher-rows", &job.teacher_rows,
      "folder that keeps the teacher's rows for its logits, 4 bytes a value, so that another run over the same text need "
      "not run the teacher");
  options.add_choice("distill", &job.distill, {"none", "logits", "hidden", "both"}, "what of the teacher is matched");
  options.add("distill-weight", &job.distill_weight, "weight of the teacher's part of the loss", {.least = 0});
  options.add("nll-weight", &job.nll_weight, "weight of cross-entropy", {.least = 0});
  options.add("temperature", &job.temperature, "of the distilled logits", {.least = 0.01});
  options.add("lr", &job.lr, "learning rate of the adapters", {.least = 0});
  options.add("scale-lr", &job.scale_lr, "learning rate of the router scale", {.least = 0});
  options.add("router-lr", &job.router_lr, "learning rate of the router's projections", {.least = 0});
  options.add("weight-decay", &job.weight_decay, "decoupled (AdamW); 0 is Adam", {.least = 0});
  options.add("clip", &job.clip, "largest norm of the gradient; 0 for none", {.least = 0});
  options.add_choice("schedule", &job.schedule, {"cosine", "constant"}, "of the learning rates");
  options.add("warmup-steps", &job.warmup_steps, "steps of linear warm-up", {.least = 0});
  options.add("batch-size", &job.batch_size, "sequences of a step, over all ranks", {.least = 1});
  options.add_choice("dtype", &job.dtype, {"f32", "bf16"}, "type of the frozen weights while running");
  options.add("recompute", &job.recompute,
              "keep only each layer's input and run it again in backward: less memory, a third more work");
  options.add("eval-dataset", &job.eval_datasets, "held-out text for --eval-every; may be repeated");
  options.add("eval-every", &job.eval_every, "steps between evaluations; 0 for none", {.least = 0});
  options.add("eval-windows", &job.eval_windows, "sequences of an evaluation", {.least = 1});
  options.add("save-every", &job.save_every, "steps between saved states; 0 saves at the end and on SIGTERM only",
              {.least = 0});
  options.add("adapter-every", &job.adapter_every, "steps between adapters of their own in OUT/adapter-<step>; 0 for none",
              {.least = 0});
  options.add("resume", &job.resume, "go on from the newest saved state in --out, or start where there is none");
  options.add("out", &job.out, "folder for log, states and the adapter");
  for (const char* name : {"model", "dataset", "out"}) options.require(name);
}

void apply_recipe(const Options& options, Job& job) {
  if (job.recipe != "authors") return;
  if (!options.given("lr")) job.lr = 5.65e-5;
  if (!options.given("schedule")) job.schedule = "constant";
  if (!options.given("clip")) job.clip = 0;
  job.no_router_scale = true;
}

TrainedParts trained_parts(const Job& job) {
  TrainedParts parts{.rank = job.rank, .expert_rank = job.expert_rank, .alpha = job.alpha, .rslora = job.rslora};
  parts.lora_targets.clear();
  std::stringstream targets(job.lora_targets);
  for (std::string target; std::getline(targets, target, ',');) parts.lora_targets.insert(target);
  parts.router_scale = !job.no_router_scale;
  parts.router_bias = job.balance != "none";
  parts.keep_router_bias = job.recipe != "authors";
  parts.router_weights = job.train_router;
  parts.router_regression = job.router_regression;
  return parts;
}

TrainerOptions trainer_options(const Job& job) {
  TrainerOptions options{.batch_size = job.batch_size, .seed = static_cast<uint64_t>(job.seed), .dropout = job.dropout};
  options.optimizer = {.learning_rate = {job.lr, job.scale_lr, job.router_lr},
                       .weight_decay = job.weight_decay,
                       .clip = job.clip,
                       .schedule = job.schedule == "cosine" ? ScheduleKind::cosine : ScheduleKind::constant,
                       .warmup_steps = job.warmup_steps};
  options.balance = {.rule = parse_balance_rule(job.balance), .gamma = job.gamma, .threshold_rate = job.threshold_rate};
  options.loss = {.nll = job.nll_weight, .temperature = job.temperature, .recompute = job.recompute};
  if (job.distill == "logits" || job.distill == "both") options.loss.kl = job.distill_weight;
  if (job.distill == "hidden" || job.distill == "both") options.loss.hidden = job.distill_weight;
  return options;
}

std::vector<TrainingSequence> cut(const std::vector<int32_t>& tokens, const std::vector<int64_t>& offsets, const Job& job,
                                  const ModelConfig& config) {
  CMOE_CHECK(!job.documents || !config.eos_token_ids.empty(), "documents: {} names no end-of-text token; leave --documents out",
             job.model);
  std::vector<TrainingSequence> sequences;
  for (int64_t offset : offsets) {
    TrainingSequence sequence{
        .tokens = std::span(tokens).subspan(static_cast<size_t>(offset), static_cast<size_t>(job.seq_len)), .segments = {}};
    sequence.segments = job.documents ? split_documents(sequence.tokens, config.eos_token_ids[0]) : whole_sequence(job.seq_len);
    sequences.push_back(std::move(sequence));
  }
  return sequences;
}

// The options that decide the result: a state may go on under others of speed, place and frequency.
std::string identity_of(const Options& options, const Checkpoint& checkpoint) {
  std::istringstream lines(options.effective_config());
  std::string identity = "base " + model_fingerprint(checkpoint) + "\n";
  for (std::string line; std::getline(lines, line);) {
    const std::string key = line.substr(0, line.find_first_of(" ="));
    bool free = key.empty() || key[0] == '#';
    for (const char* name : {"out", "model", "teacher", "teacher-rows", "resume", "save-every", "adapter-every", "eval-dataset",
                             "eval-every", "eval-windows", "threshold-samples", "threads", "quiet", "config", "recompute",
                             "expert-parallel", "dispatcher", "placement"})
      free = free || key == name;
    if (!free) identity += line + "\n";
  }
  return identity;
}

// The steps of a training and what is written on the way.
class Run {
 public:
  Run(const Job& job, Session& session, TrainedModel& model, Trainer& trainer, TrainingState& state,
      std::span<const TrainingSequence> sequences, std::span<const TrainingSequence> held_out, std::optional<StepLog>& log)
      : job_(job),
        session_(session),
        world_(session.world()),
        model_(model),
        trainer_(trainer),
        state_(state),
        calibration_(sequences.first(std::min(sequences.size(), static_cast<size_t>(job.threshold_samples)))),
        held_out_(held_out),
        log_(log),
        saved_(trainer.steps_done()) {}

  // All steps that are left, then the adapter; or up to a signal. Returns the exit code.
  ExitCode train() {
    if (job_.eval_every > 0 && trainer_.steps_done() == 0) evaluate();
    if (trainer_.steps_done() < trainer_.steps() && !take_steps()) return stopped();
    if (!with_final_thresholds([&] { write_adapter_to(job_.out); })) return stopped();
    if (session_.is_root()) {
      write_file_atomically(job_.out + "/loss.svg", log_->plot());
      log_info("adapter in {}/; cmoe merge --model {} --adapter {} --out FOLDER makes a model of it", job_.out, job_.model,
               job_.out);
    }
    world_.barrier();
    return ExitCode::ok;
  }

 private:
  // False: a signal came, and a rank or more is to end here.
  bool take_steps() {
    Progress progress("finetune", (trainer_.steps() - trainer_.steps_done()) * job_.batch_size * job_.seq_len, "tokens");
    while (trainer_.steps_done() < trainer_.steps()) {
      Timer timer;
      const StepReport report = trainer_.step();
      progress.advance(report.tokens);
      if (log_) log_->add(step_line(report, timer.seconds(), job_.lr, job_.distill != "none"));
      const bool last = report.step == trainer_.steps();
      if (last || (job_.save_every > 0 && report.step % job_.save_every == 0)) save();
      if (!last && stop_requested_anywhere()) return false;
      const bool keep = job_.adapter_every > 0 && report.step % job_.adapter_every == 0;
      const bool score = job_.eval_every > 0 && (last || report.step % job_.eval_every == 0);
      const auto write = [&] {
        if (keep) keep_adapter(report.step);
        if (score) evaluate();
      };
      if ((keep || score) && !with_final_thresholds(write)) return false;
    }
    progress.finish();
    return true;
  }

  // Calls `use` while the thresholds are those of a written adapter; training goes on with the running ones. False when a
  // signal came before.
  template <class Use>
  bool with_final_thresholds(const Use& use) {
    const std::vector<float> running = model_.thresholds();
    if (trainer_.steps_done() > 0 && model_.parts().router_bias &&
        !model_.calibrate_thresholds(calibration_, world_, [&] { return stop_requested_anywhere(); }))
      return false;
    use();
    model_.set_thresholds(running);
    return true;
  }

  void evaluate() {
    const double nll = evaluate_loss(model_, held_out_, world_);
    if (!log_) return;
    log_->add({{"step", trainer_.steps_done()}, {"eval_nll", nll}, {"eval_perplexity", std::exp(nll)}});
    log_info("step {}: held-out {:.4f} nats per token (perplexity {:.3f})", trainer_.steps_done(), nll, std::exp(nll));
  }

  void keep_adapter(int64_t step) {
    std::optional<OutputDirectory> output;
    if (session_.is_root()) output.emplace(fmt::format("{}/adapter-{:08}", job_.out, step), /*force=*/true);
    write_adapter_to(world_.broadcast_string(output ? output->work_path() : "", 0));
    if (output) output->commit();
  }

  void write_adapter_to(const std::string& folder) {
    if (world_.rank() < model_.group_size()) write_adapter(model_, job_.model, job_.dropout, folder);
  }

  void save() {
    state_.save(trainer_);
    saved_ = trainer_.steps_done();
  }

  bool stop_requested_anywhere() {
    std::vector<int64_t> stop{stop_requested() ? 1 : 0};
    world_.all_reduce_max(stop);
    return stop[0] != 0;
  }

  ExitCode stopped() {
    if (saved_ != trainer_.steps_done()) save();
    if (session_.is_root())
      log_warn("{}: saved after step {} of {}; run the same command with --resume", stop_signal_name(), trainer_.steps_done(),
               trainer_.steps());
    return ExitCode::requeue;
  }

  const Job& job_;
  Session& session_;
  Communicator& world_;
  TrainedModel& model_;
  Trainer& trainer_;
  TrainingState& state_;
  std::span<const TrainingSequence> calibration_, held_out_;
  std::optional<StepLog>& log_;  // of rank 0
  int64_t saved_;                // steps of the newest state
};

}  // namespace

int finetune(int argc, char** argv, Environment& environment) {
  Session session(environment);
  Job job;
  ExpertOptions expert_options;
  Options options("cmoe finetune",
                  "Trains LoRA adapters, the router scale and the balance of a carved model on text. The result in --out is an "
                  "adapter that\ncmoe merge, cmoe --adapter and PEFT read.");
  declare(options, job);
  expert_options.declare_spread(options);
  session.declare(options);
  if (!session.parse(options, argc, argv)) return 0;
  apply_recipe(options, job);
  CMOE_CHECK((job.distill == "none") == job.teacher.empty(), "distill '{}' with teacher '{}'; expected both or neither",
             job.distill, job.teacher);
  CMOE_CHECK(job.eval_every == 0 || !job.eval_datasets.empty(), "eval-every {}: needs --eval-dataset", job.eval_every);

  CMOE_CHECK(job.teacher_rows.empty() || job.distill == "logits",
             "teacher-rows: kept for --distill logits alone; distill is '{}'", job.distill);

  Communicator& world = session.world();
  const Checkpoint checkpoint = session.open_model(job.model);
  const Tokenizer tokenizer = load_tokenizer(job.model);
  const std::vector<int32_t> tokens = read_tokens(tokenizer, job.datasets, job.text_format);
  const auto text_size = static_cast<int64_t>(tokens.size());
  const std::vector<TrainingSequence> sequences =
      cut(tokens,
          job.samples > 0 ? random_offsets(text_size, job.seq_len, job.samples, static_cast<uint64_t>(job.seed))
                          : consecutive_offsets(text_size, job.seq_len),
          job, checkpoint.config);
  const std::vector<int32_t> eval_tokens = read_tokens(tokenizer, job.eval_datasets, job.text_format);
  std::vector<TrainingSequence> held_out;
  if (job.eval_every > 0)
    held_out = cut(eval_tokens, consecutive_offsets(static_cast<int64_t>(eval_tokens.size()), job.seq_len, job.eval_windows),
                   job, checkpoint.config);

  const DType dtype = parse_dtype(job.dtype);
  const ExpertGroups groups(expert_options, checkpoint, world);
  const Transformer base(checkpoint, session.backend(), dtype, Transformer::LoadFfn::yes, groups.parallel());
  TrainedModel model(checkpoint, base, trained_parts(job), static_cast<uint64_t>(job.seed));
  std::unique_ptr<Transformer> teacher;
  std::optional<TeacherRows> teacher_rows;
  if (!job.teacher.empty()) {
    const Checkpoint taught = session.open_model(job.teacher);
    teacher = std::make_unique<Transformer>(taught, session.backend(), dtype);
    if (!job.teacher_rows.empty()) {
      if (session.is_root()) fs::create_directories(job.teacher_rows);
      teacher_rows.emplace(job.teacher_rows, model_fingerprint(taught) + " " + job.dtype);
    }
  }
  const TrainerOptions settings = trainer_options(job);
  Trainer trainer(model,
                  {teacher.get(), settings.loss.kl > 0, settings.loss.hidden > 0, teacher_rows ? &*teacher_rows : nullptr},
                  settings, sequences, world);
  TrainingState state(job.out, identity_of(options, checkpoint), world);

  if (job.resume && state.newest()) {
    state.load(trainer);
    const bool done = trainer.steps_done() == trainer.steps();
    if (session.is_root())
      log_info("resumed from step {} of {}{}", trainer.steps_done(), trainer.steps(), done ? ": all trained before" : "");
  } else if (session.is_root()) {
    CMOE_CHECK(job.resume || !fs::exists(job.out) || fs::is_empty(job.out),
               "{}/: exists; pass --resume to go on, or name a new folder", job.out);
    fs::create_directories(job.out);
  }
  world.barrier();
  std::optional<StepLog> log;
  if (session.is_root()) {
    write_file_atomically(job.out + "/finetune.cfg", options.effective_config());
    log.emplace(job.out, trainer.steps_done());
    log_info("{} trained values, {} steps of {} sequences of {} tokens; {}", format_count(model.layout().size()),
             trainer.steps(), job.batch_size, job.seq_len,
             model.group_size() > 1 ? fmt::format("groups of {} ranks share the experts", model.group_size())
                                    : "every rank holds all weights");
  }

  return static_cast<int>(Run(job, session, model, trainer, state, sequences, held_out, log).train());
}

}  // namespace cmoe::jobs

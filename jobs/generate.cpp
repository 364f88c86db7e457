// cmoe generate: continue a prompt, or many.

#include <algorithm>
#include <cstdio>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "data/load_tokenizer.h"
#include "jobs/batch_file.h"
#include "jobs/expert_options.h"
#include "jobs/jobs.h"
#include "jobs/session.h"
#include "model/expert_plan.h"
#include "model/generation.h"
#include "serve/batch_generation.h"

namespace cmoe::jobs {
namespace {

struct Job {
  std::string model, adapter, prompt, system, batch, out, dtype = "f32";
  bool chat = false;
  int64_t max_tokens = 64, seed = 0, max_memory_mb = 0;
  SamplingOptions sampling;
  BatchLimits limits;
  ExpertOptions experts;
};

void declare(Job& job, Options& options) {
  options.add("model", &job.model, "Hugging Face folder, GGUF file, or a folder that cmoe wrote");
  options.add("adapter", &job.adapter, "LoRA adapter to put on the model, of cmoe finetune or PEFT");
  options.add("prompt", &job.prompt, "text to continue, or the user's message with --chat");
  options.add("batch", &job.batch,
              "instead: a file of JSON lines {\"prompt\": text, \"max_tokens\": n, \"chat\": true, \"seed\": n}");
  options.add("out", &job.out, "with --batch: write the answers to this file, one JSON line for each prompt");
  options.add("chat", &job.chat, "put the prompt into the model's chat template");
  options.add("system", &job.system, "system message, with --chat");
  options.add("max-tokens", &job.max_tokens, "new tokens at most", {.least = 1});
  options.add("temperature", &job.sampling.temperature, "0 takes the most likely token", {.least = 0.0});
  options.add("top-k", &job.sampling.top_k, "draw from the k most likely tokens; 0 from all", {.least = 0});
  options.add("top-p", &job.sampling.top_p, "draw from the smallest set of tokens with this probability",
              {.least = 0.0, .most = 1.0});
  options.add("seed", &job.seed, "of the random draws, of each prompt", {.least = 0});
  options.add("max-batch", &job.limits.max_batch, "with --batch: prompts under way on one rank", {.least = 1});
  options.add("max-step-tokens", &job.limits.max_step_tokens,
              "with --batch: tokens of one rank in a step; longer prompts are read in pieces", {.least = 1});
  options.add("max-memory", &job.max_memory_mb,
              "with --batch: MiB of one rank for weights, a step and KV caches; 0 sets no limit",
              {.least = 0, .most = 1 << 30});
  options.add_choice("dtype", &job.dtype, {"f32", "bf16"}, "type of the weights while running");
  options.require("model");
  job.experts.declare(options);
}

void print_plan(const Job& job, Session& session) {
  const Checkpoint checkpoint = open_checkpoint(job.model);
  const int ranks = job.experts.group_size(session.world());
  const int64_t positions = checkpoint.config.max_position_embeddings;
  if (!session.is_root()) return;
  std::printf("KV caches are those of %lld sequences of %lld tokens on each rank\n",
              static_cast<long long>(job.limits.max_batch), static_cast<long long>(positions));
  print_expert_plan(job.experts, checkpoint, parse_dtype(job.dtype), ranks,
                    job.limits.max_batch * KvCache::bytes(checkpoint.config, positions),
                    activation_bytes(checkpoint.config, job.limits.max_step_tokens));
}

void continue_prompt(const Job& job, const Tokenizer& tokenizer, const Transformer& model, ExpertGroups& groups,
                     Session& session) {
  const std::vector<int32_t> ids = encode_prompt(tokenizer, job.prompt, job.chat, job.system, job.model);
  StreamDecoder decoder(tokenizer);
  const GenerationResult result = cmoe::generate(
      model, ids, job.max_tokens, job.sampling, session.world(),
      [&](int32_t id) {
        std::fputs(decoder.push(id).c_str(), stdout);
        std::fflush(stdout);
      },
      groups.observer());
  if (!session.is_root()) return;
  std::printf("%s\n", decoder.finish().c_str());
  log_info("prompt {} tokens in {:.2f} s ({:.0f} tokens/s); {} new tokens{}, {:.1f} tokens/s", ids.size(),
           result.prefill_seconds, static_cast<double>(ids.size()) / result.prefill_seconds, result.tokens.size(),
           result.ended ? " (ended)" : "",
           result.decode_steps > 0 ? static_cast<double>(result.decode_steps) / result.decode_seconds : 0.0);
}

void answer_batch(const Job& job, const Tokenizer& tokenizer, const Transformer& model, ExpertGroups& groups,
                  Session& session) {
  const BatchRequest defaults{.prompt = {}, .max_tokens = job.max_tokens, .sampling = job.sampling};
  const std::vector<BatchRequest> requests = read_batch(job.batch, tokenizer, defaults, job.chat, job.system, job.model);
  BatchLimits limits = job.limits;
  limits.max_memory_bytes = job.max_memory_mb << 20;
  limits.max_step_tokens = std::max(limits.max_step_tokens, limits.max_batch);
  BatchReport report;
  Progress progress("generate", static_cast<int64_t>(requests.size()), "answers");
  int64_t reported = 0;
  const std::vector<BatchAnswer> answers =
      generate_batch(model, requests, limits, session.world(), groups.observer(), &report, [&](int64_t done) {
        progress.advance(done - reported);
        reported = done;
      });
  progress.finish();
  if (!session.is_root()) return;
  write_file_atomically(job.out, answers_text(tokenizer, requests, answers));
  log_info("{} prompts of {} tokens answered with {} in {:.2f} s ({:.1f} new tokens/s); {} steps, {} prompts at once at most",
           requests.size(), report.prompt_tokens, report.new_tokens, report.seconds,
           static_cast<double>(report.new_tokens) / report.seconds, report.steps, report.most_sequences);
}

}  // namespace

int generate(int argc, char** argv, Environment& environment) {
  Session session(environment);
  Job job;
  Options options("cmoe generate",
                  "Continues a prompt with a dense or carved model and prints the text as it comes; or a file of prompts.");
  declare(job, options);
  session.declare(options);
  if (!session.parse(options, argc, argv)) return 0;
  if (job.experts.dry_run) {
    print_plan(job, session);
    return 0;
  }
  CMOE_CHECK(options.given("prompt") != options.given("batch"), "generate: expected either --prompt or --batch");
  CMOE_CHECK(job.batch.empty() == job.out.empty(), "generate: --batch and --out go together: prompts in, answers out");
  job.sampling.seed = static_cast<uint64_t>(job.seed);

  const Checkpoint checkpoint = session.open_model(job.model, job.adapter);
  const Tokenizer tokenizer = load_tokenizer(job.model);
  ExpertGroups groups(job.experts, checkpoint, session.world());
  const Transformer model(checkpoint, session.backend(), parse_dtype(job.dtype), Transformer::LoadFfn::yes, groups.parallel());
  if (job.batch.empty()) {
    continue_prompt(job, tokenizer, model, groups, session);
  } else {
    answer_batch(job, tokenizer, model, groups, session);
  }
  groups.report(job.model, session.world());
  return 0;
}

}  // namespace cmoe::jobs

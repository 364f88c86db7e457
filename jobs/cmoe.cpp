// cmoe: one program, one sub-command per job.

#include <malloc.h>

#include <cstdio>
#include <cstring>
#include <new>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "base/stage.h"
#include "base/version.h"
#include "comm/heartbeat.h"
#include "comm/same_on_all_ranks.h"
#include "jobs/jobs.h"

namespace cmoe::jobs {
namespace {

struct Command {
  const char* name;
  int (*run)(int argc, char** argv, Environment& environment);
  const char* summary;
};

constexpr Command kCommands[] = {
    {"tokenize", tokenize, "turn text into token ids"},
    {"inspect", inspect, "show a checkpoint, a carved model or a profile"},
    {"profile", profile, "record FFN activations of a dense model on calibration text"},
    {"carve", carve, "turn a profiled dense model into a Mixture-of-Experts"},
    {"evaluate", evaluate, "perplexity and tasks of models side by side"},
    {"analyze", analyze, "what a carved model's experts have in common, and how its routers choose"},
    {"generate", generate, "continue a prompt"},
    {"finetune", finetune, "heal a carved model with LoRA, its router included"},
    {"merge", merge, "merge an adapter into a model folder"},
    {"logits", logits, "write a model's logits on a text as a .npy file"},
    {"doctor", doctor, "what this machine offers, and which kernels will run"},
};

void print_usage(std::FILE* out) {
  std::fprintf(out,
               "cmoe %s\nTurns a dense LLM into a Mixture-of-Experts, and runs it.\n\nusage: cmoe COMMAND [OPTIONS]   (cmoe "
               "COMMAND --help)\n\n",
               version_string().c_str());
  for (const Command& command : kCommands) std::fprintf(out, "  %-10s %s\n", command.name, command.summary);
}

const Command* find_command(const char* name) {
  for (const Command& command : kCommands) {
    if (std::strcmp(command.name, name) == 0) return &command;
  }
  return nullptr;
}

// An error that every rank meets is told once, one that a rank alone meets with the rank's name; the lowest rank alive tells
// it. Ranks that do not watch each other (yet) give rank 0 time to speak for all, and to end the job.
int end_with_error(Environment& environment, const char* message, ExitCode code) {
  Communicator& world = environment.world();
  if (world.size() == 1) {
    log_error("{}", message);
  } else if (Heartbeat* heartbeat = environment.heartbeat()) {
    heartbeat->end_together(message, code);
  } else {
    if (world.rank() != 0) std::this_thread::sleep_for(std::chrono::seconds(2));
    world.abort(fmt::format("error: {}", message), static_cast<int>(code));
  }
  return static_cast<int>(code);
}

// Layers ask for the same large arrays again and again; given back to the system each time, they cost page faults.
void keep_freed_memory() {
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
}

}  // namespace

int run(int argc, char** argv) {
  if (argc >= 2 && (std::strcmp(argv[1], "--version") == 0 || std::strcmp(argv[1], "version") == 0)) {
    std::printf("cmoe %s\n", version_string().c_str());
    return 0;
  }
  if (argc >= 2 && (std::strcmp(argv[1], "--help") == 0 || std::strcmp(argv[1], "help") == 0)) {
    print_usage(stdout);
    return 0;
  }
  const Command* command = argc >= 2 ? find_command(argv[1]) : nullptr;
  if (!command) {
    if (argc >= 2) std::fprintf(stderr, "error: command '%s': unknown\n\n", argv[1]);
    print_usage(stderr);
    return static_cast<int>(ExitCode::user);
  }
  keep_freed_memory();
  Environment environment(argc, argv);
  set_log({.rank = environment.world().rank(), .size = environment.world().size(), .host = host_name()});
  try {
    check_same_on_all_ranks(environment.world(), "build of cmoe", version_string());
    environment.watch_ranks();
    check_same_on_all_ranks(environment.world(), "command", command->name);
    set_stage(command->name);
    return command->run(argc - 1, argv + 1, environment);
  } catch (const Error& error) {
    return end_with_error(environment, error.what(), error.code());
  } catch (const std::bad_alloc&) {
    return end_with_error(environment, "out of memory", ExitCode::failure);
  } catch (const std::exception& error) {
    return end_with_error(environment, error.what(), ExitCode::failure);
  }
}

}  // namespace cmoe::jobs

int main(int argc, char** argv) {
  try {
    return cmoe::jobs::run(argc, argv);
  } catch (const cmoe::Error& error) {  // before the ranks know each other
    cmoe::log_error("{}", error.what());
    return static_cast<int>(error.code());
  }
}

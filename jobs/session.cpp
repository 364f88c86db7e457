#include "jobs/session.h"

#include <cstdio>
#include <sstream>

#include "backend/cpu_info.h"
#include "base/error.h"
#include "base/log.h"
#include "base/parallel.h"
#include "comm/heartbeat.h"
#include "comm/same_on_all_ranks.h"
#include "data/text.h"
#include "jobs/variables.h"
#include "model/adapter.h"
#include "model/fingerprint.h"

namespace cmoe::jobs {

namespace {

// The options on which the ranks must agree: how many threads a rank has and how much it says is its own affair.
std::string shared_options(const std::string& config) {
  std::istringstream in(config);
  std::string shared;
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with("threads ") && !line.starts_with("quiet ")) shared += line + "\n";
  }
  return shared;
}

}  // namespace

void Session::declare(Options& options) {
  options.add("threads", &threads_, "threads of each rank; 0 divides the node's cores over its ranks", {.least = 0});
  options.add("rank-timeout", &rank_timeout_,
              "seconds from the loss of a rank to the end of the job; 0 waits for ever for a rank that is silent",
              {.least = 0});
  options.add("quiet", &quiet_, "no progress and no information, only warnings and errors");
}

bool Session::parse(Options& options, int argc, char** argv) {
  const bool asked_for_work = options.parse(argc, argv);
  check_same_on_all_ranks(world_, "configuration", asked_for_work ? shared_options(options.effective_config()) : "--help");
  if (!asked_for_work) {
    if (is_root()) std::fputs(options.help().c_str(), stdout);
    return false;
  }
  refuse_unknown_variables();
  CMOE_CHECK(rank_timeout_ == 0 || rank_timeout_ >= 1, "option --rank-timeout: '{}'; expected 0, or at least 1 s",
             rank_timeout_);
  if (environment_.heartbeat()) environment_.heartbeat()->set_timeout(rank_timeout_);
  LogSettings log = log_settings();
  log.quiet = quiet_;
  set_log(log);
  set_num_threads(threads_ > 0 ? static_cast<int>(threads_) : default_threads(world_.node_size()));
  return true;
}

Checkpoint Session::open_model(const std::string& path, const std::string& adapter) {
  Checkpoint checkpoint = open_checkpoint(path, adapter);
  if (world_.size() > 1) check_same_on_all_ranks(world_, "model " + path, model_fingerprint(checkpoint));
  return checkpoint;
}

std::shared_ptr<const Backend> Session::backend() {
  if (!backend_) backend_ = make_cpu_backend();
  return backend_;
}

DType parse_dtype(const std::string& text) {
  if (text == "f32") return DType::f32;
  if (text == "bf16") return DType::bf16;
  fail("dtype '{}': unknown; expected f32 or bf16", text);
}

std::vector<int32_t> read_tokens(const Tokenizer& tokenizer, const std::vector<std::string>& datasets,
                                 const std::string& format) {
  std::vector<int32_t> tokens;
  for (const std::string& path : datasets) {
    const std::vector<int32_t> ids = encode_documents(tokenizer, read_text(path, parse_text_format(format)));
    tokens.insert(tokens.end(), ids.begin(), ids.end());
  }
  return tokens;
}

}  // namespace cmoe::jobs

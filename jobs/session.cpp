#include "jobs/session.h"

#include <cstdio>

#include "backend/cpu_info.h"
#include "base/error.h"
#include "base/log.h"
#include "base/parallel.h"
#include "data/text.h"

namespace cmoe::jobs {

void Session::declare(Options& options) {
  options.add("threads", &threads_, "threads of each rank; 0 divides the node's cores over its ranks", {.least = 0});
  options.add("quiet", &quiet_, "no progress and no information, only warnings and errors");
}

bool Session::parse(Options& options, int argc, char** argv) {
  if (!options.parse(argc, argv)) {
    if (is_root()) std::fputs(options.help().c_str(), stdout);
    return false;
  }
  LogSettings log = log_settings();
  log.quiet = quiet_;
  set_log(log);
  set_num_threads(threads_ > 0 ? static_cast<int>(threads_) : default_threads(world_.node_size()));
  return true;
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

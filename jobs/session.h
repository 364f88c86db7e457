#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/options.h"
#include "base/signals.h"
#include "comm/communicator.h"
#include "data/tokenizer.h"
#include "model/checkpoint.h"
#include "tensor/dtype.h"

namespace cmoe::jobs {

/// What all jobs share: options of speed and voice, the backend, the ranks.
class Session {
 public:
  explicit Session(Environment& environment) : environment_(environment), world_(environment.world()) {}

  /// Declares --threads, --quiet, --rank-timeout.
  void declare(Options& options);
  /// Parses; prints the help and returns false when it was asked for. Sets threads, log and rank timeout. Collective.
  /// @throws Error when the ranks were given different options.
  bool parse(Options& options, int argc, char** argv);

  /// Opens a checkpoint on every rank, with a LoRA adapter put on it unless `adapter` is empty. Collective.
  /// @throws Error when the ranks hold different models.
  Checkpoint open_model(const std::string& path, const std::string& adapter = "");

  Communicator& world() { return world_; }
  bool is_root() const { return world_.rank() == 0; }
  std::shared_ptr<const Backend> backend();

 private:
  Environment& environment_;
  Communicator& world_;
  StopSignals signals_;
  int64_t threads_ = 0;
  double rank_timeout_ = 10;
  bool quiet_ = false;
  std::shared_ptr<const Backend> backend_;
};

/// f32 or bf16.
DType parse_dtype(const std::string& text);

/// Token ids of the texts, one stream. Every rank reads and tokenises for itself, so that nothing needs to travel.
/// @param format  auto, plain, jsonl or wikitext.
std::vector<int32_t> read_tokens(const Tokenizer& tokenizer, const std::vector<std::string>& datasets,
                                 const std::string& format);

}  // namespace cmoe::jobs

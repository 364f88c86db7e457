#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/options.h"
#include "eval/expert_counter.h"
#include "eval/score_texts.h"
#include "jobs/expert_options.h"
#include "jobs/session.h"
#include "model/transformer.h"

namespace cmoe::jobs {

/// Options of `cmoe evaluate`: what is measured, on which models.
struct Evaluation {
  std::vector<std::string> models, adapters, datasets;
  std::string text_format = "auto", dtype = "f32", json, expert_stats, tasks, task_data, log_samples;
  bool perplexity = false, update_card = false, chat = false;
  int64_t seq_len = 2048, windows = 0, stride = 0, fewshot = 0, limit = 0, step_tokens = 2048;
  bool seq_len_given = false;
  ExpertOptions experts;

  /// Adapter of model `i`; "" for none.
  std::string adapter(size_t i) const { return adapters.empty() || adapters[i] == "none" ? "" : adapters[i]; }
  /// "MODEL" or "MODEL + ADAPTER", as reports call it.
  std::string label(size_t i) const { return adapter(i).empty() ? models[i] : models[i] + " + " + adapter(i); }
};

/// A model under evaluation, its experts spread over ranks, and what its routers chose. Collective.
class EvaluatedModel {
 public:
  EvaluatedModel(const Evaluation& job, size_t index, Session& session)
      : path_(job.models[index]),
        world_(session.world()),
        checkpoint_(session.open_model(path_, job.adapter(index))),
        groups_(job.experts, checkpoint_, world_),
        transformer_(checkpoint_, session.backend(), parse_dtype(job.dtype), Transformer::LoadFfn::yes, groups_.parallel()),
        counter_(checkpoint_.config) {}

  const Transformer& transformer() const { return transformer_; }
  MoeObserver* observer() { return groups_.observer(&counter_); }
  /// Sums over ranks and reports; once, when the model has run.
  void finish() {
    counter_.reduce(world_);
    groups_.report(path_, world_);
  }
  const ExpertCounter& experts() const { return counter_; }

 private:
  std::string path_;
  Communicator& world_;
  Checkpoint checkpoint_;
  ExpertGroups groups_;
  Transformer transformer_;
  ExpertCounter counter_;
};

/// What a measurement leaves behind for evaluate's files.
struct EvaluationReport {
  std::string table;            ///< for stdout
  nlohmann::ordered_json json;  ///< for --json
  nlohmann::json experts;       ///< for --expert-stats, a list with one entry a model
};

/// Appends rows to a table in the README.md of a folder that cmoe wrote; any other model is left alone.
/// @param title    of the table's section, made where it is missing
/// @param columns  its first line, "| text | value |"
/// @param rows     whole lines
void add_to_card(const std::string& model, const std::string& title, const std::string& columns, const std::string& rows);

/// Collective. Perplexity over windows of text.
EvaluationReport evaluate_text(const Evaluation& job, Session& session);
/// Collective. Tasks of lm-evaluation-harness.
EvaluationReport evaluate_tasks(const Evaluation& job, Session& session);

}  // namespace cmoe::jobs

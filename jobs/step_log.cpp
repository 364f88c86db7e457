#include "jobs/step_log.h"

#include <cstdio>
#include <filesystem>
#include <sstream>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/read_file.h"
#include "jobs/loss_plot.h"

namespace cmoe::jobs {

StepLog::StepLog(const std::string& folder, int64_t steps_done) : path_(folder + "/log.jsonl") {
  std::string kept;
  if (steps_done > 0 && std::filesystem::exists(path_)) {
    std::istringstream lines(read_file(path_));
    for (std::string line; std::getline(lines, line);) {
      const nlohmann::json json = nlohmann::json::parse(line, nullptr, false);
      if (json.is_object() && json.value("step", int64_t{0}) <= steps_done) kept += line + "\n";
    }
  }
  write_file_atomically(path_, kept);
}

void StepLog::add(const nlohmann::ordered_json& line) {
  std::FILE* file = std::fopen(path_.c_str(), "a");
  if (!file) fail_with_errno(path_, "open for appending", errno);
  const std::string text = line.dump() + "\n";
  const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
  const bool closed = std::fclose(file) == 0;
  if (!written || !closed) fail_with_errno(path_, "append a line", errno);
}

std::string StepLog::plot() const {
  std::vector<std::pair<double, double>> steps, held_out;
  std::istringstream lines(read_file(path_));
  for (std::string line; std::getline(lines, line);) {
    const nlohmann::json json = nlohmann::json::parse(line);
    if (json.contains("loss")) steps.emplace_back(json["step"], json["loss"]);
    if (json.contains("eval_nll")) held_out.emplace_back(json["step"], json["eval_nll"]);
  }
  return loss_plot(steps, held_out);
}

nlohmann::ordered_json step_line(const StepReport& report, double seconds, double lr, bool distils) {
  nlohmann::ordered_json json{{"step", report.step},
                              {"loss", report.loss},
                              {"nll", report.nll},
                              {"tokens", report.tokens},
                              {"tokens_per_s", static_cast<double>(report.tokens) / seconds},
                              {"lr", lr * report.lr_factor},
                              {"grad_norm", report.grad_norm}};
  if (distils) {
    json["kl"] = report.kl;
    json["hidden"] = report.hidden;
  }
  if (!report.loads.max_over_mean.empty()) {
    json["mean_active"] = report.loads.mean_active;
    json["max_over_mean_load"] = report.loads.worst();
    json["layer_loads"] = report.loads.max_over_mean;
  }
  return json;
}

}  // namespace cmoe::jobs

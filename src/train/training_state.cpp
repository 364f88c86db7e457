#include "train/training_state.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/output_directory.h"
#include "base/sha256.h"
#include "tensor/safetensors.h"
#include "tensor/safetensors_writer.h"
#include "tensor/strict_json.h"
#include "train/layout_runs.h"

namespace cmoe {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFormat = "cmoe-training-2";
constexpr std::string_view kName = "checkpoint-";

// The step in a folder's name; nothing for other names, those of unfinished folders included.
std::optional<int64_t> step_of(const std::string& name) {
  if (!name.starts_with(kName) || name.size() != kName.size() + 8) return std::nullopt;
  const std::string digits = name.substr(kName.size());
  if (!std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; })) return std::nullopt;
  return std::stoll(digits);
}

std::vector<int64_t> saved_steps(const std::string& folder) {
  std::vector<int64_t> steps;
  if (!fs::is_directory(folder)) return steps;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (const auto step = step_of(entry.path().filename().string())) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

// The newest two states stay; unfinished folders of a killed run go.
void remove_old(const std::string& folder) {
  std::vector<int64_t> steps = saved_steps(folder);
  std::error_code ignored;  // what cannot be removed is only untidy
  std::vector<fs::path> old;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    const auto step = step_of(name);
    const bool unfinished = name.starts_with(kName) && name.find(".tmp-") != std::string::npos;
    if (unfinished || (step && steps.size() > 2 && *step < steps[steps.size() - 2])) old.push_back(entry.path());
  }
  for (const fs::path& path : old) fs::remove_all(path, ignored);
}

// Routers as two tensors: what no gradient trains.
Tensor router_biases(const TrainedModel& model) {
  Tensor biases = Tensor::zeros(DType::f32, {model.num_layers(), model.num_routed_experts()});
  for (int64_t l = 0; l < model.num_layers(); ++l) {
    const Tensor& bias = model.router(l).selection_bias;
    if (bias.size() > 0) std::memcpy(biases.row<float>(l), bias.raw(), static_cast<size_t>(bias.bytes()));
  }
  return biases;
}
Tensor thresholds(const TrainedModel& model) {
  Tensor values(DType::f32, {model.num_layers()});
  for (int64_t l = 0; l < model.num_layers(); ++l) values.data<float>()[l] = model.router(l).threshold;
  return values;
}

// Slices of several vectors, one behind the other.
Tensor join(const std::vector<Tensor>& parts) {
  int64_t size = 0;
  for (const Tensor& part : parts) size += part.size();
  Tensor all(DType::f32, {size});
  float* to = all.data<float>();
  for (const Tensor& part : parts) {
    if (part.size() > 0) std::memcpy(to, part.raw(), static_cast<size_t>(part.bytes()));
    to += part.size();
  }
  return all;
}

nlohmann::json read_manifest(const std::string& path) {
  const std::string name = path + "/manifest.json";
  CMOE_CHECK(fs::exists(name), "{}: missing; the state is damaged, remove {} to go on from the one before", name, path);
  const nlohmann::json manifest = parse_strict_json(read_text_file(name), name);
  CMOE_CHECK(manifest.value("format", "") == kFormat, "{}: format is '{}', expected {}", name, manifest.value("format", ""),
             kFormat);
  for (const auto& file : manifest.at("files")) {
    const std::string part = path + "/" + file.at("name").get<std::string>();
    CMOE_CHECK(fs::exists(part), "{}: missing, but {} lists it; remove {} to go on from the state before", part, name, path);
    const auto bytes = static_cast<int64_t>(fs::file_size(part)), expected = file.at("bytes").get<int64_t>();
    CMOE_CHECK(bytes == expected, "{}: has {} bytes, expected {}; remove {} to go on from the state before", part, bytes,
               expected, path);
    CMOE_CHECK(sha256_of_file(part) == file.at("sha256").get<std::string>(),
               "{}: its SHA-256 is not the one in {}; remove {} to go on from the state before", part, name, path);
  }
  return manifest;
}

}  // namespace

std::string layout_hash(const ParameterLayout& layout) {
  std::string text;
  for (const Parameter& parameter : layout.all())
    text += fmt::format("{} {} {}\n", parameter.name, to_string(parameter.shape), static_cast<int>(parameter.group));
  return sha256_hex(text);
}

TrainingState::TrainingState(std::string folder, std::string identity, Communicator& comm)
    : folder_(std::move(folder)), identity_(std::move(identity)), comm_(comm) {}

std::string TrainingState::path_of(int64_t step) const { return fmt::format("{}/{}{:08}", folder_, kName, step); }

void TrainingState::save(Trainer& trainer) {
  const std::string path = path_of(trainer.steps_done());
  std::optional<OutputDirectory> output;
  if (comm_.rank() == 0) output.emplace(path, /*force=*/true);
  const std::string work = comm_.broadcast_string(output ? output->work_path() : "", 0);

  const TrainedModel& model = trainer.model();
  LayoutRuns runs;
  std::vector<Tensor> values, first, second;
  for (TrainedPart& part : trainer.parts()) {
    const auto [begin, end] = part.sum.slice();
    runs.add(part.parameters, begin, end);
    values.push_back(part.parameters.values().rows(begin, end));
    first.push_back(part.adam.first());
    second.push_back(part.adam.second());
  }
  std::vector<std::pair<std::string, Tensor>> tensors{
      {"values", join(values)}, {"first", join(first)}, {"second", join(second)}};
  if (comm_.rank() == 0 && model.num_routed_experts() > 0) {
    tensors.emplace_back("selection_bias", router_biases(model));
    tensors.emplace_back("threshold", thresholds(model));
  }
  const std::string name = fmt::format("state-{:05}-of-{:05}.safetensors", comm_.rank() + 1, comm_.size());
  const std::string bytes = safetensors_bytes(tensors, {{"runs", runs.text()}});
  write_file_atomically(work + "/" + name, bytes);
  const std::vector<std::string> files =
      comm_.all_gather_strings(nlohmann::json{{"name", name}, {"bytes", bytes.size()}, {"sha256", sha256_hex(bytes)}}.dump());

  if (comm_.rank() == 0) {
    nlohmann::ordered_json manifest{{"format", kFormat},
                                    {"step", trainer.steps_done()},
                                    {"parameters", model.layout().size()},
                                    {"layout", layout_hash(model.layout())},
                                    {"identity", identity_}};
    for (const std::string& file : files) manifest["files"].push_back(nlohmann::ordered_json::parse(file));
    write_file_atomically(work + "/manifest.json", manifest.dump(2) + "\n");
    output->commit();
    remove_old(folder_);
  }
  comm_.barrier();
}

std::optional<int64_t> TrainingState::newest() const {
  std::vector<int64_t> step{-1};
  if (comm_.rank() == 0) {
    const std::vector<int64_t> steps = saved_steps(folder_);
    if (!steps.empty()) step[0] = steps.back();
  }
  comm_.broadcast<int64_t>(step, 0);
  return step[0] < 0 ? std::nullopt : std::optional(step[0]);
}

void TrainingState::load(Trainer& trainer) const {
  const std::optional<int64_t> step = newest();
  CMOE_CHECK(step, "{}: holds no saved state to resume from", folder_);
  const std::string path = path_of(*step);
  const nlohmann::json manifest = read_manifest(path);
  TrainedModel& model = trainer.model();
  const std::string where = path + "/manifest.json";
  CMOE_CHECK(manifest.at("layout").get<std::string>() == layout_hash(model.layout()),
             "{}: was saved for other trained parameters than this model's; use the same model and --lora options", where);
  const std::string found = manifest.at("identity").get<std::string>();
  CMOE_CHECK(found == identity_, "{}: was saved by a run with other options; expected\n{}found\n{}", where, identity_, found);

  LayoutTargets values, first, second;
  for (TrainedPart& part : trainer.parts()) {
    const auto [begin, end] = part.sum.slice();
    values.add(part.parameters, 0, part.parameters.size(), part.parameters.values());
    first.add(part.parameters, begin, end, part.adam.first());
    second.add(part.parameters, begin, end, part.adam.second());
  }
  LayoutRuns all;
  for (const auto& entry : manifest.at("files")) {
    const SafetensorsFile file(path + "/" + entry.at("name").get<std::string>());
    const LayoutRuns runs(file.metadata().at("runs"), file.name());
    values.fill(runs, file, "values");
    first.fill(runs, file, "first");
    second.fill(runs, file, "second");
    all.append(runs);
    if (!file.contains("threshold")) continue;
    const Tensor biases = file.read("selection_bias", DType::f32), threshold = file.read("threshold", DType::f32);
    for (int64_t l = 0; l < model.num_layers(); ++l) {
      Router& router = model.router(l);
      router.threshold = threshold.data<float>()[l];
      if (router.selection_bias.size() > 0)
        std::memcpy(router.selection_bias.raw(), biases.row<float>(l), static_cast<size_t>(router.selection_bias.bytes()));
    }
  }
  all.check_covers(model.layout().size(), where);
  for (TrainedPart& part : trainer.parts()) part.adam.set_steps(manifest.at("step").get<int64_t>());
  model.pack();
}

}  // namespace cmoe

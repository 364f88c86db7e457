#include "carve/walk.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "base/progress.h"
#include "base/stage.h"
#include "carve/calibration.h"
#include "carve/observe.h"
#include "comm/stop.h"
#include "model/transformer.h"

namespace cmoe {
namespace {

NeuronStatistics stored_statistics(const ProfileLayer& stored, Marker marker) {
  NeuronStatistics statistics = stored.raw;
  if (marker == Marker::normalized) statistics.marked = stored.normalized_marked;
  return statistics;
}

// Tokens of all ranks that take each routed expert. Collective.
std::vector<int64_t> tokens_per_expert(const Routing& routing, size_t experts, Communicator& comm) {
  std::vector<int64_t> tokens(experts, 0);
  for (int32_t e : routing.expert_idx) ++tokens[static_cast<size_t>(e)];
  comm.all_reduce_sum(tokens);
  return tokens;
}

// NaN for none.
double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

int64_t expected_active_neurons(const ExpertShape& shape, int64_t f) {
  return (shape.shared + shape.active) * (f / shape.experts);
}

// Layers are independent: each rank carves its own, alone, from the profile file.
CarveSummary carve_from_profile(const Checkpoint& checkpoint, const Backend& backend, const Profile& profile,
                                const CarveOptions& options, Communicator& comm, const LayerSink& sink) {
  const auto alone = comm.split(comm.rank());
  Progress progress("carve", profile.layers(), "layers");
  for (int64_t first = 0; first < profile.layers(); first += comm.size()) {
    const int64_t l = first + comm.rank();
    set_stage("carve", l);
    stop_together(comm, "carve");
    if (l >= profile.layers()) break;
    const DenseFfnTensors dense = read_dense_ffn(checkpoint, l, DType::f32);
    const ProfileLayer stored = profile.read_layer(l);
    LayerActivations activations{
        .markers = options.recipe.marker == Marker::raw ? stored.raw_markers : stored.normalized_markers,
        .k_act = profile.k_act(),
        .chunks = TokenChunks::of_sequences(profile.sequences(), profile.sequences(), profile.sequence_length())};
    const NeuronStatistics statistics = stored_statistics(stored, options.recipe.marker);
    sink(l, carve_layer(backend, options.recipe, options.shape, dense, activations, statistics, l, options.seed, *alone),
         dense);
    progress.advance(std::min<int64_t>(comm.size(), profile.layers() - first));
  }
  set_stage("carve");
  progress.finish();
  return {.calibration_nll = std::numeric_limits<double>::quiet_NaN(),
          .active_fraction = static_cast<double>(expected_active_neurons(options.shape, profile.neurons())) /
                             static_cast<double>(profile.neurons())};
}

}  // namespace

CarveSummary carve_model(const Checkpoint& checkpoint, std::shared_ptr<const Backend> backend, const Profile& profile,
                         const CarveOptions& options, Communicator& comm, const LayerSink& sink) {
  if (options.recipe.from_profile_alone()) return carve_from_profile(checkpoint, *backend, profile, options, comm, sink);

  const Transformer model(checkpoint, backend, options.dtype, Transformer::LoadFfn::no);
  const int64_t f = checkpoint.config.intermediate_size, m = f / options.shape.experts;
  const CalibrationShard shard(profile.tokens(), profile.sequence_length(), checkpoint.config, comm);
  const TokenChunks chunks = shard.chunks();
  Tensor x = model.embed(shard.batch());
  CarveSummary summary;
  summary.expert_loads.tokens = chunks.total_tokens;
  int64_t active_pairs = 0, shared_neurons = 0;
  std::vector<double> energy_before, energy_after;  // of the layers
  std::vector<Marker> markers;
  if (options.recipe.needs_markers()) markers.push_back(options.recipe.marker);
  StageTimes times;
  Progress progress("carve", profile.layers(), "layers");
  for (int64_t l = 0; l < profile.layers(); ++l) {
    set_stage("carve", l);
    stop_together(comm, "carve");
    model.add_attention(l, shard.batch(), x);
    times.lap("attention");
    const DenseFfnTensors dense = read_dense_ffn(checkpoint, l, DType::f32);
    const ObservedFfn ffn(*backend, dense, options.dtype);
    LayerActivations activations{.input = model.ffn_input(l, x), .k_act = profile.k_act(), .chunks = chunks};
    FfnActivations observed = observe_ffn(*backend, ffn, activations.input, profile.k_act(), markers);
    activations.h = std::move(observed.h);
    activations.markers = std::move(options.recipe.marker == Marker::raw ? observed.raw_markers : observed.normalized_markers);
    times.lap("FFN activations");
    NeuronStatistics statistics{.tokens = chunks.total_tokens};
    if (options.recipe.needs_moments()) statistics = neuron_statistics(activations.h, chunks, comm);
    if (!markers.empty()) statistics.marked = count_markers(activations.markers, f, comm);
    times.lap("statistics");

    const CarvedLayer carved =
        carve_layer(*backend, options.recipe, options.shape, dense, activations, statistics, l, options.seed, comm);
    times.add(carved.stage_seconds);
    if (!carved.energy.empty()) {
      energy_before.push_back(carved.energy.front());
      energy_after.push_back(carved.energy.back());
    }
    const Routing routing = calibration_routing(*backend, carved, options.shape, activations.input);
    summary.expert_loads.layers.push_back(tokens_per_expert(routing, carved.experts.size(), comm));
    for (int64_t tokens : summary.expert_loads.layers.back()) active_pairs += tokens;
    shared_neurons += static_cast<int64_t>(carved.shared.size());
    if (options.recipe.calibration == Calibration::carved) {
      add_carved_output(*backend, carved, options.dtype, activations, routing, x);
    } else {
      add_down(*backend, ffn, activations.h, x);
    }
    times.lap("layer output");
    if (comm.rank() == l % comm.size()) sink(l, carved, dense);
    times.lap("write");
    progress.advance(1);
  }
  set_stage("carve");
  progress.finish();

  const double layer_tokens = static_cast<double>(chunks.total_tokens) * static_cast<double>(profile.layers());
  summary.energy_before = mean_of(energy_before);
  summary.energy_after = mean_of(energy_after);
  summary.stage_seconds = times.totals();
  summary.active_fraction = (static_cast<double>(shared_neurons) / static_cast<double>(profile.layers()) +
                             static_cast<double>(active_pairs) / layer_tokens * static_cast<double>(m)) /
                            static_cast<double>(f);
  summary.calibration_nll = options.recipe.calibration == Calibration::carved ? shard.mean_nll(model, x, comm)
                                                                              : std::numeric_limits<double>::quiet_NaN();
  return summary;
}

}  // namespace cmoe

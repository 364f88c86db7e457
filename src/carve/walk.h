#pragma once

#include <functional>
#include <limits>

#include "carve/layer.h"
#include "carve/profile.h"
#include "carve/recipe.h"
#include "carve/stage_times.h"
#include "model/expert_loads.h"

namespace cmoe {

struct CarveOptions {
  Recipe recipe;
  ExpertShape shape;
  uint64_t seed = 0;
  DType dtype = DType::f32;  ///< of the forward pass
};

/// What a carve found out on its calibration tokens.
struct CarveSummary {
  double calibration_nll = 0;  ///< nats per token of the carved model; NaN when the carve ran no forward pass
  double active_fraction = 0;  ///< share of FFN neurons computed per calibration token
  /// Of the activations' energy, the share that ran before neurons moved by it and in the last round: means over the layers
  /// where they did, or NaN.
  double energy_before = std::numeric_limits<double>::quiet_NaN(), energy_after = energy_before;
  StageSeconds stage_seconds;  ///< time of this rank in each stage, over all layers
  ExpertLoads expert_loads;    ///< of the calibration tokens; no layers when the carve routed none
};

/// Receives each carved layer on the rank that is to write it.
using LayerSink = std::function<void(int64_t layer, const CarvedLayer& carved, const DenseFfnTensors& dense)>;

/// Carves all layers of a dense model on a profile's calibration tokens. Collective.
///
/// With a recipe that needs markers alone, layers are independent: rank r carves layers r, r + P, ... from the profile file.
/// Else the walk goes layer by layer, tokens divided over ranks, and all ranks get every layer; rank (layer mod P) hands it to
/// `sink`. Either way the carved layers are the same to the bit for any number of ranks (f32).
CarveSummary carve_model(const Checkpoint& checkpoint, std::shared_ptr<const Backend> backend, const Profile& profile,
                         const CarveOptions& options, Communicator& comm, const LayerSink& sink);

}  // namespace cmoe

#pragma once

#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "model/transformer.h"
#include "train/trained_model.h"

namespace cmoe {

inline const std::string kModels = std::string(CMOE_SOURCE_DIR) + "/tests/model/fixtures/";

/// A tiny model of the fixtures and adapters around it.
struct TinyModel {
  explicit TinyModel(const std::string& name, const TrainedParts& parts = {}, uint64_t seed = 1, DType dtype = DType::f32)
      : checkpoint(open_checkpoint(kModels + name)),
        base(std::make_unique<Transformer>(checkpoint, make_cpu_backend(), dtype)),
        trained(checkpoint, *base, parts, seed) {}

  Checkpoint checkpoint;
  std::unique_ptr<Transformer> base;
  TrainedModel trained;
};

inline std::vector<int32_t> golden_ids(const std::string& model) {
  std::ifstream file(kModels + model + "/golden_ids.txt");
  std::vector<int32_t> ids;
  for (int32_t id; file >> id;) ids.push_back(id);
  return ids;
}

/// Makes every parameter random: a fresh adapter's B is zero, which hides errors.
inline void randomise(TrainedModel& model, uint64_t seed, float scale = 0.2f) {
  uint64_t counter = 0;
  for (float& value : model.parameters().values().span<float>())
    value += scale * (static_cast<float>(random_bits(seed, counter++) >> 40) * 0x1p-23f - 1.0f);
  model.pack();
}

}  // namespace cmoe

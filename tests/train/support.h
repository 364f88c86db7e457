#pragma once

#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "model/transformer.h"
#include "train/trained_model.h"

namespace cmoe {

inline const std::string kModels = std::string(CMOE_SOURCE_DIR) + "/tests/model/fixtures/";

/// A tiny model of the fixtures and adapters around it.
struct TinyModel {
  explicit TinyModel(const std::string& name, const TrainedParts& parts = {}, uint64_t seed = 1, DType dtype = DType::f32,
                     std::shared_ptr<const ExpertParallel> experts = nullptr)
      : checkpoint(open_checkpoint(kModels + name)),
        base(std::make_unique<Transformer>(checkpoint, make_cpu_backend(), dtype, Transformer::LoadFfn::yes, experts)),
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

/// Calls visit(parameter, value, gradient) for what this rank holds, with tensors that share the model's and the gradients'
/// storage; the gradient is that of the first rank's sequence.
template <class Visit>
void for_each_parameter(TrainedModel& model, const TrainedModel::Gradients& gradients, const Visit& visit) {
  for (auto [set, gradient] :
       {std::pair(&model.parameters(), &gradients.parameters), std::pair(&model.expert_parameters(), &gradients.experts[0])}) {
    for (size_t i = 0; i < set->all().size(); ++i) {
      const auto index = static_cast<int64_t>(i);
      visit((*set)[index], set->value(index), set->view(*gradient, index));
    }
  }
}

/// Makes every parameter random, by its place in the layout: a fresh adapter's B is zero, which hides errors.
inline void randomise(TrainedModel& model, uint64_t seed, float scale = 0.2f) {
  for (ParameterSet* set : {&model.parameters(), &model.expert_parameters()}) {
    for (const Parameter& parameter : set->all()) {
      for (int64_t i = 0; i < parameter.size; ++i) {
        const uint64_t bits = random_bits(seed, static_cast<uint64_t>(parameter.place + i));
        set->values().data<float>()[parameter.offset + i] += scale * (static_cast<float>(bits >> 40) * 0x1p-23f - 1.0f);
      }
    }
  }
  model.pack();
}

}  // namespace cmoe

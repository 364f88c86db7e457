#pragma once

#include <memory>
#include <string>
#include <vector>

#include "support/files.h"
#include "support/world.h"
#include "train/support.h"
#include "train/trainer.h"

namespace cmoe {

// Sequences of a vocabulary of 61 that follow a rule, so that there is something to learn.
inline std::vector<std::vector<int32_t>> made_up_tokens(int64_t sequences, int64_t length) {
  std::vector<std::vector<int32_t>> all;
  for (int64_t s = 0; s < sequences; ++s) {
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < length; ++i) {
      const bool noise = random_bits(static_cast<uint64_t>(s), static_cast<uint64_t>(i)) % 4 == 0;
      tokens.push_back(noise || i == 0
                           ? static_cast<int32_t>(random_bits(static_cast<uint64_t>(s), 1000 + static_cast<uint64_t>(i)) % 61)
                           : (tokens.back() * 3 + 1) % 61);
    }
    all.push_back(std::move(tokens));
  }
  return all;
}

struct TrainingRun {
  TrainingRun(const std::string& name, Communicator& comm, TrainerOptions options = {}, TrainedParts parts = {.rank = 4},
              std::shared_ptr<const ExpertParallel> experts = nullptr, int64_t count = 22)
      : tiny(name, parts, 1, DType::f32, std::move(experts)) {
    tokens = made_up_tokens(count, 24);
    for (const auto& ids : tokens) sequences.push_back({ids, whole_sequence(static_cast<int64_t>(ids.size()))});
    options.batch_size = 5;
    options.optimizer.learning_rate = {3e-3, 1e-2, 1e-2};
    trainer = std::make_unique<Trainer>(tiny.trained, TrainedModel::Teacher{}, options, sequences, comm);
  }
  // All that was trained, on rank 0 of the group. Collective over the group.
  std::vector<float> values() const {
    const Tensor all = tiny.trained.collect_values();
    std::vector<float> values(all.span<float>().begin(), all.span<float>().end());
    for (int64_t l = 0; l < tiny.trained.num_layers(); ++l) {
      const Router& router = tiny.trained.router(l);
      for (float bias : router.selection_bias.span<float>()) values.push_back(bias);
      values.push_back(router.threshold);
    }
    return values;
  }

  TinyModel tiny;
  std::vector<std::vector<int32_t>> tokens;
  std::vector<TrainingSequence> sequences;
  std::unique_ptr<Trainer> trainer;
};

// The folder of rank 0, on all ranks.
inline std::string shared_folder(const TempFolder& mine, Communicator& comm = test_world()) {
  return comm.broadcast_string(mine.path().string(), 0);
}

}  // namespace cmoe

#pragma once

#include <optional>
#include <string>

#include "train/trainer.h"

namespace cmoe {

/// Saved training state in `<folder>/checkpoint-<step>`: per rank a safetensors file with its slices of values and moments, and
/// manifest.json with step, what was trained, and every file's size and SHA-256. A folder has its name only when it is complete
/// (it is renamed), so a run that is killed at any moment leaves the state before. Format: docs/formats.md.
///
/// Slices name their places in the model's layout, so that another number of ranks, with other experts on each, can read them.
class TrainingState {
 public:
  /// @param identity  the options that decide the result, as text: a state is refused under other ones.
  TrainingState(std::string folder, std::string identity, Communicator& comm);

  /// Saves the state after trainer.steps_done() steps, then drops all but the two newest. Collective.
  void save(Trainer& trainer);
  /// Step of the newest state; nothing when there is none. The same on all ranks. Collective.
  std::optional<int64_t> newest() const;
  /// Puts the newest state into the trainer. Collective.
  /// @throws Error naming the file that is missing or damaged, and when it was saved by a run with other options.
  void load(Trainer& trainer) const;

 private:
  std::string path_of(int64_t step) const;

  std::string folder_, identity_;
  Communicator& comm_;
};

/// A hash of the names, shapes and order of all parameters.
std::string layout_hash(const ParameterLayout& layout);

}  // namespace cmoe

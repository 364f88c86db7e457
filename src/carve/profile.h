#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "carve/layer.h"
#include "comm/communicator.h"
#include "model/checkpoint.h"

namespace cmoe {

/// Where a profile comes from, kept as attributes of its file.
struct Provenance {
  std::string model;       ///< path as given
  std::string model_hash;  ///< model_fingerprint()
  std::string datasets;    ///< "name sha256" of each text, one a line
  std::string options;     ///< key = value lines of the command
  std::string version;     ///< of the program
  std::string dtype;       ///< of the forward pass
  double seconds = 0;
  int64_t ranks = 0;
};

/// Statistics of one layer, as stored.
struct ProfileLayer {
  std::vector<int32_t> raw_markers;         ///< [T, k_act], tokens in the order of the calibration sequences
  std::vector<int32_t> normalized_markers;  ///< [T, k_act]
  NeuronStatistics raw;                     ///< moments of h, counts of raw markers
  std::vector<int64_t> normalized_marked;   ///< [f]
};

/// A profile file (HDF5; layout in docs/formats.md), open for reading.
class Profile {
 public:
  /// @throws Error when the file is not a complete profile.
  static Profile open(const std::filesystem::path& path);

  int64_t layers() const { return layers_; }
  int64_t neurons() const { return neurons_; }
  int64_t k_act() const { return k_act_; }
  int64_t sequences() const { return static_cast<int64_t>(tokens_.size()) / sequence_length_; }
  int64_t sequence_length() const { return sequence_length_; }
  double dense_nll() const { return dense_nll_; }
  /// [sequences * sequence_length] calibration token ids.
  const std::vector<int32_t>& tokens() const { return tokens_; }
  const Provenance& provenance() const { return provenance_; }

  /// Reads one layer's statistics; markers of all tokens.
  ProfileLayer read_layer(int64_t layer) const;

  /// @throws Error when the profile was not taken from this model.
  void check_model(const Checkpoint& checkpoint) const;

 private:
  std::filesystem::path path_;
  int64_t layers_ = 0, neurons_ = 0, k_act_ = 0, sequence_length_ = 0;
  double dense_nll_ = 0;
  std::vector<int32_t> tokens_;
  Provenance provenance_;
};

struct ProfileOptions {
  int64_t k_act = 10;
  DType dtype = DType::f32;
};

/// Runs the dense model over the calibration sequences, layer by layer, and writes the profile collectively. Sequences are
/// divided over ranks; nothing dense leaves a rank. The file appears under its name only when it is complete.
/// @param tokens  [sequences, sequence_length] ids, the same on all ranks.
void run_profile(const Checkpoint& checkpoint, std::shared_ptr<const Backend> backend, const std::vector<int32_t>& tokens,
                 int64_t sequence_length, const ProfileOptions& options, Provenance provenance, Communicator& comm,
                 const std::filesystem::path& out);

}  // namespace cmoe

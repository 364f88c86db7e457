#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "carve/layer.h"
#include "carve/walk.h"
#include "comm/communicator.h"
#include "model/checkpoint.h"
#include "tensor/safetensors_writer.h"

namespace cmoe {

/// The config of what a recipe makes of a dense model.
ModelConfig carved_config(const ModelConfig& dense, const Recipe& recipe, const ExpertShape& shape);

/// Writes a carved model's safetensors files from all ranks: the layout is known beforehand, so each rank writes its tensors at
/// their final offsets, and the bytes do not depend on which rank wrote what. Collective construction and finish().
class CarvedModelWriter {
 public:
  /// @param folder      where the files are written; the same on all ranks (a shared file system).
  /// @param dtype       of the weights in the files; routers stay f32.
  /// @param shard_bytes largest file, unless one tensor alone is larger.
  CarvedModelWriter(const Checkpoint& dense, const ModelConfig& config, DType dtype, int64_t shard_bytes, std::string folder,
                    Communicator& comm);
  ~CarvedModelWriter();

  void write_layer(int64_t layer, const CarvedLayer& carved, const DenseFfnTensors& dense);
  /// Embeddings, attention and norms, copied from the dense checkpoint; each rank copies its part.
  void copy_dense_tensors();
  /// Every tensor, where the checkpoint has this config already: a merged adapter changes no shape.
  void copy_all_tensors();
  /// Flushes the files; rank 0 writes the index when there are several. Returns the names of all files, on every rank.
  std::vector<std::string> finish();

  int64_t total_bytes() const { return total_bytes_; }
  /// Names and sizes of the files to be written.
  const std::vector<std::pair<std::string, int64_t>>& files() const { return files_; }

 private:
  struct Shard;

  void write(const std::string& name, const Tensor& tensor);
  void copy(const std::function<bool(const std::string& name)>& wanted);

  const Checkpoint& dense_;
  ModelConfig config_;
  DType dtype_;
  std::string folder_;
  Communicator& comm_;
  std::vector<std::unique_ptr<Shard>> shards_;
  std::vector<std::pair<std::string, int64_t>> files_;
  int64_t total_bytes_ = 0, tensor_bytes_ = 0, written_ = 0, promised_ = 0;
};

/// The tensors of a carved (or dense) model in the order they are written: name, dtype, shape.
std::vector<TensorSpec> carved_tensors(const ModelConfig& config, DType dtype);

/// One weight file of a carved model.
struct PlannedFile {
  std::string name;
  std::vector<TensorSpec> tensors;
  int64_t bytes = 0;  ///< of the whole file
};

/// Cuts the carved_tensors() into files of at most `shard_bytes` of tensors, unless one tensor alone is larger.
std::vector<PlannedFile> plan_files(const ModelConfig& config, DType dtype, int64_t shard_bytes);

/// Writes everything beside the weights (rank 0): config.json, generation_config.json, tokenizer files, the Python files, the
/// model card, cmoe.cfg (the effective options), expert_loads.json when `loads` has layers, and last manifest.json with every
/// file's size and SHA-256.
void write_companion_files(const Checkpoint& dense, const ModelConfig& config, const std::string& folder,
                           const std::vector<std::string>& weight_files, const std::string& card,
                           const std::string& effective_options, const ExpertLoads& loads = {});

/// The README.md of a carved folder: recipe, shape, measured figures, provenance.
std::string model_card(const Checkpoint& dense, const Profile& profile, const CarveOptions& options,
                       const CarveSummary& summary);

}  // namespace cmoe

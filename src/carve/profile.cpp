// The profile file: layout in docs/formats.md.

#include "carve/profile.h"

#include "base/error.h"
#include "model/fingerprint.h"
#include "tensor/hdf5.h"

namespace cmoe {
namespace {

std::string layer_group(int64_t layer) { return fmt::format("layers/{:04}", layer); }

// Markers as stored: u16 where indices fit.
std::vector<int32_t> read_markers(const H5File& file, const std::string& dataset, const Shape& shape) {
  if (file.type(dataset) == H5Type::i32) return file.read_all<int32_t>(dataset, shape);
  const std::vector<uint16_t> narrow = file.read_all<uint16_t>(dataset, shape);
  return {narrow.begin(), narrow.end()};
}

}  // namespace

Profile Profile::open(const std::filesystem::path& path) {
  const H5File file = H5File::open(path);
  CMOE_CHECK(file.has_attribute("/", "format") && file.string_attribute("/", "format") == "cmoe-profile-1",
             "{}: is not a profile of this program; expected one that cmoe profile wrote", path.string());
  CMOE_CHECK(file.has_attribute("/", "complete"), "{}: the profile was not finished; run cmoe profile again", path.string());
  Profile profile;
  profile.path_ = path;
  profile.layers_ = file.integer_attribute("/", "layers");
  profile.neurons_ = file.integer_attribute("/", "neurons");
  profile.k_act_ = file.integer_attribute("/", "k_act");
  profile.dense_nll_ = file.number_attribute("/", "dense_nll");
  const Shape shape = file.shape("tokens");
  CMOE_CHECK(shape.size() == 2 && shape[0] >= 1 && shape[1] >= 2,
             "{}: dataset 'tokens' has shape {}, expected [sequences, length]", path.string(), to_string(shape));
  profile.sequence_length_ = shape[1];
  profile.tokens_ = file.read_all<int32_t>("tokens");
  profile.provenance_ = {.model = file.string_attribute("/", "model"),
                         .model_hash = file.string_attribute("/", "model_hash"),
                         .datasets = file.string_attribute("/", "datasets"),
                         .options = file.string_attribute("/", "options"),
                         .version = file.string_attribute("/", "version"),
                         .dtype = file.string_attribute("/", "dtype"),
                         .seconds = file.number_attribute("/", "seconds"),
                         .ranks = file.integer_attribute("/", "ranks")};
  return profile;
}

ProfileLayer Profile::read_layer(int64_t layer) const {
  const H5File file = H5File::open(path_);
  const std::string group = layer_group(layer) + "/";
  const auto tokens = static_cast<int64_t>(tokens_.size());
  ProfileLayer result;
  result.raw_markers = read_markers(file, group + "markers_raw", {tokens, k_act_});
  result.normalized_markers = read_markers(file, group + "markers_normalized", {tokens, k_act_});
  result.raw = {.tokens = tokens,
                .marked = file.read_all<int64_t>(group + "count_raw", {neurons_}),
                .mean = file.read_all<double>(group + "mean", {neurons_}),
                .second_moment = file.read_all<double>(group + "second_moment", {neurons_}),
                .mean_abs = file.read_all<double>(group + "mean_abs", {neurons_})};
  result.normalized_marked = file.read_all<int64_t>(group + "count_normalized", {neurons_});
  return result;
}

void Profile::check_model(const Checkpoint& checkpoint) const {
  const ModelConfig& config = checkpoint.config;
  CMOE_CHECK(config.num_hidden_layers == layers_ && config.intermediate_size == neurons_,
             "{}: is of another model: {} layers of {} neurons, but {} has {} of {}", path_.string(), layers_, neurons_,
             checkpoint.path.string(), config.num_hidden_layers, config.intermediate_size);
  const std::string hash = model_fingerprint(checkpoint);
  CMOE_CHECK(hash == provenance_.model_hash, "{}: is of another model with the same shape ('{}', fingerprint {}); {} has {}",
             path_.string(), provenance_.model, provenance_.model_hash.substr(0, 12), checkpoint.path.string(),
             hash.substr(0, 12));
}

}  // namespace cmoe

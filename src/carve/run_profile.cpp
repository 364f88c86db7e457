// cmoe profile: the dense model over the calibration sequences, layer by layer.

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <filesystem>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/progress.h"
#include "base/stage.h"
#include "base/temporary_paths.h"
#include "base/timer.h"
#include "carve/calibration.h"
#include "carve/observe.h"
#include "carve/profile.h"
#include "comm/stop.h"
#include "tensor/hdf5.h"

namespace cmoe {
namespace {

void flush_file(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const bool flushed = fd >= 0 && ::fsync(fd) == 0;
  const int reason = errno;
  if (fd >= 0) ::close(fd);
  if (!flushed) fail_with_errno(path.string(), "flush to disk", reason);
}

// The file while it is written: a temporary name, renamed by rank 0 when all ranks are done; removed when the work fails.
class ProfileFile {
 public:
  ProfileFile(const std::filesystem::path& out, Communicator& comm)
      : out_(out),
        temporary_(out.string() + ".partial"),
        comm_(comm),
        registered_(temporary_),
        // One rank alone writes the file as its own: MPI-IO has nothing to add, and warns about its shared-memory file
        // pointers; and HDF5 survives the end of the program after a write that failed.
        file_(H5File::create(temporary_, comm.size() > 1 ? std::optional(comm.native_handle()) : std::nullopt)) {}

  ~ProfileFile() {
    std::error_code ignored;
    if (!committed_ && comm_.rank() == 0) std::filesystem::remove(temporary_, ignored);
  }

  H5File& file() { return file_; }

  void commit() {
    file_.set_attribute("/", "complete", int64_t{1});
    file_.close();
    comm_.barrier();
    if (comm_.rank() == 0) {
      flush_file(temporary_);
      std::filesystem::rename(temporary_, out_);
      flush_directory(out_.has_parent_path() ? out_.parent_path().string() : ".");
    }
    comm_.barrier();
    committed_ = true;
  }

 private:
  std::filesystem::path out_, temporary_;
  Communicator& comm_;
  TemporaryPath registered_;
  H5File file_;
  bool committed_ = false;
};

// All datasets up front: metadata is made collectively, once.
void create_datasets(H5File& file, const ModelConfig& config, int64_t sequences, int64_t length, int64_t k_act) {
  const H5Type marker = config.intermediate_size <= 65536 ? H5Type::u16 : H5Type::i32;
  const int64_t f = config.intermediate_size;
  file.create_dataset("tokens", H5Type::i32, {sequences, length});
  for (int64_t l = 0; l < config.num_hidden_layers; ++l) {
    const std::string group = fmt::format("layers/{:04}/", l);
    for (const char* name : {"markers_raw", "markers_normalized"})
      file.create_dataset(group + name, marker, {sequences * length, k_act});
    for (const char* name : {"count_raw", "count_normalized"}) file.create_dataset(group + name, H5Type::i64, {f});
    for (const char* name : {"mean", "second_moment", "mean_abs"}) file.create_dataset(group + name, H5Type::f64, {f});
  }
}

void write_markers(H5File& file, const std::string& dataset, const std::vector<int32_t>& markers, int64_t first_token,
                   int64_t k_act) {
  const Shape offset{first_token, 0}, count{static_cast<int64_t>(markers.size()) / k_act, k_act};
  if (file.type(dataset) == H5Type::i32) {
    file.write<int32_t>(dataset, markers, offset, count);
  } else {
    file.write<uint16_t>(dataset, std::vector<uint16_t>(markers.begin(), markers.end()), offset, count);
  }
}

// A vector that all ranks hold: rank 0 writes it, the others take part with nothing.
template <class T>
void write_shared(H5File& file, const std::string& dataset, const std::vector<T>& values, const Communicator& comm) {
  const auto size = comm.rank() == 0 ? static_cast<int64_t>(values.size()) : 0;
  file.write<T>(dataset, std::span(values).first(static_cast<size_t>(size)), {0}, {size});
}

}  // namespace

void run_profile(const Checkpoint& checkpoint, std::shared_ptr<const Backend> backend, const std::vector<int32_t>& tokens,
                 int64_t sequence_length, const ProfileOptions& options, Provenance provenance, Communicator& comm,
                 const std::filesystem::path& out) {
  const Timer timer;
  const ModelConfig& config = checkpoint.config;
  const Transformer model(checkpoint, backend, options.dtype, Transformer::LoadFfn::no);
  const CalibrationShard shard(tokens, sequence_length, config, comm);
  const TokenChunks chunks = shard.chunks();
  const int64_t first_token = shard.first_sequence() * sequence_length;
  ProfileFile profile(out, comm);
  H5File& file = profile.file();
  create_datasets(file, config, static_cast<int64_t>(tokens.size()) / sequence_length, sequence_length, options.k_act);
  file.write<int32_t>("tokens",
                      std::span(tokens).subspan(static_cast<size_t>(first_token), static_cast<size_t>(chunks.local_tokens())),
                      {shard.first_sequence(), 0}, {shard.local_sequences(), sequence_length});

  constexpr std::array<Marker, 2> kBoth{Marker::raw, Marker::normalized};
  Tensor x = model.embed(shard.batch());
  Progress progress("profile", chunks.total_tokens * config.num_hidden_layers, "token-layers");
  for (int64_t l = 0; l < config.num_hidden_layers; ++l) {
    set_stage("profile", l);
    stop_together(comm, "profile");
    model.add_attention(l, shard.batch(), x);
    const ObservedFfn ffn(*backend, read_dense_ffn(checkpoint, l, DType::f32), options.dtype);
    const FfnActivations activations = observe_ffn(*backend, ffn, model.ffn_input(l, x), options.k_act, kBoth);
    add_down(*backend, ffn, activations.h, x);

    const NeuronStatistics statistics = neuron_statistics(activations.h, chunks, comm);
    const std::string group = fmt::format("layers/{:04}/", l);
    write_markers(file, group + "markers_raw", activations.raw_markers, first_token, options.k_act);
    write_markers(file, group + "markers_normalized", activations.normalized_markers, first_token, options.k_act);
    write_shared(file, group + "count_raw", count_markers(activations.raw_markers, config.intermediate_size, comm), comm);
    write_shared(file, group + "count_normalized",
                 count_markers(activations.normalized_markers, config.intermediate_size, comm), comm);
    write_shared(file, group + "mean", statistics.mean, comm);
    write_shared(file, group + "second_moment", statistics.second_moment, comm);
    write_shared(file, group + "mean_abs", statistics.mean_abs, comm);
    progress.advance(chunks.total_tokens);
  }
  progress.finish();
  set_stage("profile");
  const double dense_nll = shard.mean_nll(model, x, comm);

  std::array<double, 1> seconds{timer.seconds()};
  comm.all_reduce_max(std::span<double>(seconds));
  file.set_attribute("/", "format", "cmoe-profile-1");
  file.set_attribute("/", "layers", config.num_hidden_layers);
  file.set_attribute("/", "neurons", config.intermediate_size);
  file.set_attribute("/", "k_act", options.k_act);
  file.set_attribute("/", "dense_nll", dense_nll);
  file.set_attribute("/", "model", provenance.model);
  file.set_attribute("/", "model_hash", provenance.model_hash);
  file.set_attribute("/", "datasets", provenance.datasets);
  file.set_attribute("/", "options", provenance.options);
  file.set_attribute("/", "version", provenance.version);
  file.set_attribute("/", "dtype", provenance.dtype);
  file.set_attribute("/", "seconds", seconds[0]);
  file.set_attribute("/", "ranks", provenance.ranks);
  profile.commit();
}

}  // namespace cmoe

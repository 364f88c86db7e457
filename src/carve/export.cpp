#include "carve/export.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "base/atomic_file.h"
#include "base/error.h"
#include "carve/columns.h"

namespace cmoe {
namespace {

const std::map<std::string, std::string> kMetadata{{"format", "pt"}};

int64_t bytes_of(const TensorSpec& spec) {
  int64_t bytes = size_of(spec.dtype);
  for (int64_t extent : spec.shape) bytes *= extent;
  return bytes;
}

}  // namespace

// One file: its writer, and the descriptor that this rank opened on it.
struct CarvedModelWriter::Shard {
  std::string path;
  int fd = -1;
  std::unique_ptr<SafetensorsWriter> writer;
  std::vector<std::string> names;
};

ModelConfig carved_config(const ModelConfig& dense, const Recipe& recipe, const ExpertShape& shape) {
  ModelConfig config = dense;
  MoeConfig moe{.num_experts = recipe.routed ? shape.experts : shape.shared + shape.active,
                .num_shared_experts = recipe.routed ? shape.shared : shape.shared + shape.active,
                .num_experts_per_tok = recipe.routed ? shape.active : 0,
                .moe_intermediate_size = dense.intermediate_size / shape.experts,
                .selector = recipe.selector,
                .router = recipe.router};
  const bool routes = moe.num_routed_experts() > 0;
  moe.compensation_bias = recipe.compensation != Compensation::none;
  moe.expert_bias = recipe.compensation == Compensation::mean && routes;
  config.moe = moe;
  return config;
}

std::vector<TensorSpec> carved_tensors(const ModelConfig& config, DType dtype) {
  const MoeConfig moe = config.moe.value_or(MoeConfig{});
  const int64_t d = config.hidden_size, m = moe.moe_intermediate_size, routed = moe.num_routed_experts();
  const int64_t q = config.num_attention_heads * config.head_dim, kv = config.num_key_value_heads * config.head_dim;
  std::vector<TensorSpec> specs{{"model.embed_tokens.weight", dtype, {config.vocab_size, d}}};
  for (int64_t l = 0; l < config.num_hidden_layers; ++l) {
    const std::string prefix = fmt::format("model.layers.{}.", l);
    const auto add = [&](const std::string& name, Shape shape, DType type) {
      specs.push_back({prefix + name, type, std::move(shape)});
    };
    const auto add_ffn = [&](const std::string& name, int64_t neurons) {
      add(name + ".gate_proj.weight", {neurons, d}, dtype);
      add(name + ".up_proj.weight", {neurons, d}, dtype);
      add(name + ".down_proj.weight", {d, neurons}, dtype);
    };
    add("input_layernorm.weight", {d}, dtype);
    add("self_attn.q_proj.weight", {q, d}, dtype);
    add("self_attn.k_proj.weight", {kv, d}, dtype);
    add("self_attn.v_proj.weight", {kv, d}, dtype);
    add("self_attn.o_proj.weight", {d, q}, dtype);
    add("post_attention_layernorm.weight", {d}, dtype);
    if (!config.moe) add_ffn("mlp", config.intermediate_size);
    if (moe.num_shared_experts > 0) add_ffn("mlp.shared_experts", moe.num_shared_experts * m);
    for (int64_t e = 0; e < routed; ++e) {
      add_ffn(fmt::format("mlp.experts.{}", e), m);
      if (moe.expert_bias) add(fmt::format("mlp.experts.{}.down_proj.bias", e), {d}, dtype);
    }
    if (routed > 0) {
      if (moe.router == RouterKind::linear) {
        add("mlp.router.weight", {routed, d}, DType::f32);
        add("mlp.router.bias", {routed}, DType::f32);
      } else {
        add("mlp.router.gate_proj.weight", {routed, d}, DType::f32);
        add("mlp.router.up_proj.weight", {routed, d}, DType::f32);
      }
      if (moe.selector == Selector::threshold) add("mlp.router.threshold", {1}, DType::f32);
      if (moe.router_scale) add("mlp.router.scale", {routed}, DType::f32);
      if (moe.router_selection_bias) add("mlp.router.selection_bias", {routed}, DType::f32);
    }
    if (moe.compensation_bias) add("mlp.compensation.bias", {d}, dtype);
  }
  specs.push_back({"model.norm.weight", dtype, {d}});
  if (!config.tie_word_embeddings) specs.push_back({"lm_head.weight", dtype, {config.vocab_size, d}});
  return specs;
}

std::vector<PlannedFile> plan_files(const ModelConfig& config, DType dtype, int64_t shard_bytes) {
  std::vector<PlannedFile> files;
  int64_t bytes = 0;
  for (TensorSpec& spec : carved_tensors(config, dtype)) {
    const int64_t size = bytes_of(spec);
    if (files.empty() || bytes + size > shard_bytes) {
      files.emplace_back();
      bytes = 0;
    }
    files.back().tensors.push_back(std::move(spec));
    bytes += size;
  }
  for (size_t i = 0; i < files.size(); ++i) {
    files[i].name =
        files.size() == 1 ? "model.safetensors" : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, files.size());
    files[i].bytes = SafetensorsWriter(files[i].tensors, kMetadata, [](const void*, int64_t, int64_t) {}).file_bytes();
  }
  return files;
}

CarvedModelWriter::CarvedModelWriter(const Checkpoint& dense, const ModelConfig& config, DType dtype, int64_t shard_bytes,
                                     std::string folder, Communicator& comm)
    : dense_(dense), config_(config), dtype_(dtype), folder_(std::move(folder)), comm_(comm) {
  const std::vector<PlannedFile> plan = plan_files(config, dtype, shard_bytes);
  for (const PlannedFile& file : plan) {
    auto shard = std::make_unique<Shard>();
    shard->path = folder_ + "/" + file.name;
    // Any rank may be the first to open the file; the header is the same from all.
    shard->fd = ::open(shard->path.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
    if (shard->fd < 0) fail_with_errno(shard->path, "open for writing", errno);
    shards_.push_back(std::move(shard));
  }
  // A rank whose first write fails takes the folder away: by then all have opened their files, and none tells of that instead.
  comm_.barrier();
  for (size_t i = 0; i < plan.size(); ++i) {
    const PlannedFile& file = plan[i];
    Shard* const shard = shards_[i].get();
    for (const TensorSpec& spec : file.tensors) {
      shard->names.push_back(spec.name);
      tensor_bytes_ += bytes_of(spec);
    }
    promised_ += static_cast<int64_t>(file.tensors.size());
    shard->writer = std::make_unique<SafetensorsWriter>(
        file.tensors, kMetadata,
        [shard](const void* data, int64_t bytes, int64_t offset) { write_fully(shard->fd, offset, data, bytes, shard->path); });
    files_.emplace_back(file.name, file.bytes);
    total_bytes_ += file.bytes;
  }
}

CarvedModelWriter::~CarvedModelWriter() {
  for (const auto& shard : shards_) {
    if (shard->fd >= 0) ::close(shard->fd);
  }
}

void CarvedModelWriter::write(const std::string& name, const Tensor& tensor) {
  for (const auto& shard : shards_) {
    if (std::find(shard->names.begin(), shard->names.end(), name) != shard->names.end()) {
      shard->writer->write(name, tensor);
      ++written_;
      return;
    }
  }
  fail_internal("export: no place for tensor '{}'", name);
}

void CarvedModelWriter::write_layer(int64_t layer, const CarvedLayer& carved, const DenseFfnTensors& dense) {
  const MoeConfig& moe = *config_.moe;
  const std::string mlp = fmt::format("model.layers.{}.mlp.", layer);
  const auto write_ffn = [&](const std::string& name, const std::vector<int32_t>& neurons) {
    write(mlp + name + ".gate_proj.weight", gather_matrix_rows(dense.gate, neurons));
    write(mlp + name + ".up_proj.weight", gather_matrix_rows(dense.up, neurons));
    write(mlp + name + ".down_proj.weight", gather_columns(carved.down, neurons));
  };
  if (moe.num_shared_experts > 0) write_ffn("shared_experts", carved.shared);
  for (size_t e = 0; e < carved.experts.size(); ++e) {
    write_ffn(fmt::format("experts.{}", e), carved.experts[e]);
    if (moe.expert_bias) {
      const auto row = static_cast<int64_t>(e);
      write(fmt::format("{}experts.{}.down_proj.bias", mlp, e),
            carved.expert_bias.rows(row, row + 1).reshape({config_.hidden_size}));
    }
  }
  if (moe.num_routed_experts() > 0) {
    if (moe.router == RouterKind::linear) {
      write(mlp + "router.weight", carved.router_weight);
      write(mlp + "router.bias", carved.router_bias);
    } else {
      write(mlp + "router.gate_proj.weight", carved.router_gate);
      write(mlp + "router.up_proj.weight", carved.router_up);
    }
    if (moe.selector == Selector::threshold) {
      Tensor threshold(DType::f32, {1});
      threshold.data<float>()[0] = carved.threshold;
      write(mlp + "router.threshold", threshold);
    }
  }
  if (moe.compensation_bias) write(mlp + "compensation.bias", carved.compensation_bias);
}

void CarvedModelWriter::copy_dense_tensors() {
  copy([](const std::string& name) { return name.find(".mlp.") == std::string::npos; });
}

void CarvedModelWriter::copy_all_tensors() {
  copy([](const std::string&) { return true; });
}

void CarvedModelWriter::copy(const std::function<bool(const std::string& name)>& wanted) {
  int64_t number = 0;
  for (const TensorSpec& spec : carved_tensors(config_, dtype_)) {
    if (!wanted(spec.name)) continue;
    if (number++ % comm_.size() != comm_.rank()) continue;
    write(spec.name, dense_.tensors->read(spec.name, spec.shape, DType::f32));
  }
}

std::vector<std::string> CarvedModelWriter::finish() {
  for (const auto& shard : shards_) {
    if (::fsync(shard->fd) != 0) fail_with_errno(shard->path, "flush", errno);
  }
  std::array<int64_t, 1> written{written_};
  comm_.all_reduce_sum(written);
  if (written[0] != promised_) fail_internal("export: {} of {} tensors were written", written[0], promised_);
  std::vector<std::string> names;
  for (const auto& [name, bytes] : files_) names.push_back(name);
  if (comm_.rank() == 0 && shards_.size() > 1) {
    nlohmann::ordered_json index{{"metadata", {{"total_size", tensor_bytes_}}}};
    for (size_t s = 0; s < shards_.size(); ++s) {
      for (const std::string& name : shards_[s]->names) index["weight_map"][name] = files_[s].first;
    }
    write_file_atomically(folder_ + "/model.safetensors.index.json", index.dump(2) + "\n");
  }
  if (shards_.size() > 1) names.emplace_back("model.safetensors.index.json");
  comm_.barrier();
  return names;
}

}  // namespace cmoe

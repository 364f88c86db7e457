#include "model/checkpoint.h"

#include <atomic>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "base/error.h"
#include "base/parallel.h"
#include "model/expected_tensors.h"
#include "model/fingerprint.h"
#include "model/gguf_model.h"
#include "tensor/gguf.h"
#include "tensor/safetensors.h"
#include "tensor/strict_json.h"

namespace cmoe {
namespace {

namespace fs = std::filesystem;

void check_shape(const std::string& where, const std::string& tensor, const Shape& found, const Shape& expected,
                 const std::string& dimensions = "") {
  CMOE_CHECK(found == expected, "{}: tensor '{}' has shape {}, expected {}{}", where, tensor, to_string(found),
             to_string(expected), dimensions.empty() ? "" : fmt::format(" ({})", dimensions));
}

// Exponent bits all ones: an infinity or not a number. `Bits` are the element's; the smallest index is reported.
template <class Bits>
int64_t first_not_finite(const Tensor& tensor, Bits exponent) {
  const int64_t count = tensor.size();
  const auto* bits = static_cast<const Bits*>(tensor.raw());
  std::atomic<int64_t> first{count};
  parallel_for(count, 1 << 16, [&](int64_t begin, int64_t end) {
    Bits worst = 0;
    for (int64_t i = begin; i < end; ++i) worst |= static_cast<Bits>((bits[i] & exponent) == exponent);
    if (!worst) return;
    int64_t i = begin;
    while ((bits[i] & exponent) != exponent) ++i;
    int64_t seen = first.load();
    while (i < seen && !first.compare_exchange_weak(seen, i)) {
    }
  });
  return first;
}

void check_finite(const std::string& where, const std::string& name, const Tensor& tensor) {
  const int64_t index = tensor.dtype() == DType::f32 ? first_not_finite<uint32_t>(tensor, 0x7f800000u)
                                                     : first_not_finite<uint16_t>(tensor, 0x7f80u);
  if (index == tensor.size()) return;
  const float value = tensor.dtype() == DType::f32 ? tensor.data<float>()[index] : to_f32(tensor.data<bf16>()[index]);
  fail("{}: tensor '{}' holds {} at element {} of {}; expected finite weights", where, name,
       std::isnan(value) ? "NaN" : "an infinity", index, to_string(tensor.shape()));
}

/// One safetensors file, or shards with an index.
class SafetensorsSource : public TensorSource {
 public:
  SafetensorsSource(const fs::path& folder, bool tied) {
    const fs::path index = folder / "model.safetensors.index.json", single = folder / "model.safetensors";
    if (fs::exists(index)) {
      open_shards(folder, index);
    } else {
      CMOE_CHECK(fs::exists(single), "{}: has neither model.safetensors nor model.safetensors.index.json{}", folder.string(),
                 fs::exists(folder / "pytorch_model.bin") || fs::exists(folder / "pytorch_model.bin.index.json")
                     ? "; pytorch_model.bin is not read, convert it with save_pretrained(safe_serialization=True)"
                     : "");
      const auto& file = files_.emplace(single.filename().string(), SafetensorsFile(single)).first->second;
      for (const auto& [name, entry] : file.entries()) where_[name] = &file;
    }
    // A tied model may have been saved under the name of its head.
    const std::string embedding = "model.embed_tokens.weight", head = "lm_head.weight";
    if (tied && !where_.contains(embedding) && where_.contains(head)) alias_[embedding] = head;
  }

  std::vector<std::string> names() const override {
    std::vector<std::string> names;
    for (const auto& [name, file] : where_) names.push_back(name);
    return names;
  }
  bool contains(const std::string& name) const override { return where_.contains(stored_name(name)); }
  Shape shape(const std::string& name) const override { return file(name).entry(stored_name(name)).shape; }
  int64_t stored_bytes(const std::string& name) const override { return file(name).entry(stored_name(name)).bytes; }
  std::string stored_type(const std::string& name) const override {
    return std::string(cmoe::name_of(file(name).stored_type(stored_name(name))));
  }
  Tensor read(const std::string& name, const Shape& expected, DType as) const override {
    check_shape(file(name).name(), name, shape(name), expected);
    Tensor tensor = file(name).read(stored_name(name), as);
    check_finite(file(name).name(), name, tensor);
    return tensor;
  }
  void hash_sample_of(const std::string& name, Sha256& hash) const override {
    const SafetensorsFile& from = file(name);
    hash_sample(
        stored_bytes(name),
        [&](int64_t begin, int64_t count, void* to) { from.read_bytes(stored_name(name), begin, count, to); }, hash);
  }
  std::string file_of(const std::string& name) const override { return file(name).name(); }

 private:
  void open_shards(const fs::path& folder, const fs::path& index_path) {
    const SafetensorsIndex index = read_safetensors_index(index_path);
    for (const auto& [name, shard] : index.weight_map) {
      auto found = files_.find(shard);
      if (found == files_.end()) {
        CMOE_CHECK(fs::exists(folder / shard), "{}: shard '{}' is missing; it should hold tensor '{}'", index_path.string(),
                   shard, name);
        found = files_.emplace(shard, SafetensorsFile(folder / shard)).first;
      }
      CMOE_CHECK(found->second.contains(name), "{}: tensor '{}' is missing; expected it here by {}", found->second.name(), name,
                 index_path.filename().string());
      where_[name] = &found->second;
    }
    for (const auto& [shard, file] : files_) {
      for (const auto& [name, entry] : file.entries()) {
        const auto found = where_.find(name);
        CMOE_CHECK(found != where_.end() && found->second == &file, "{}: holds tensor '{}', which {} does not expect here",
                   file.name(), name, index_path.filename().string());
      }
    }
    folder_ = folder.string();
  }

  std::string stored_name(const std::string& name) const {
    const auto alias = alias_.find(name);
    return alias == alias_.end() ? name : alias->second;
  }
  const SafetensorsFile& file(const std::string& name) const {
    const auto found = where_.find(stored_name(name));
    CMOE_CHECK(found != where_.end(), "{}: tensor '{}' is missing",
               files_.size() == 1 ? files_.begin()->second.name() : folder_, name);
    return *found->second;
  }

  std::string folder_;
  std::map<std::string, SafetensorsFile> files_;  // by file name
  std::map<std::string, const SafetensorsFile*> where_;
  std::map<std::string, std::string> alias_;
};

/// A GGUF file under Hugging Face's names and row order.
class GgufSource : public TensorSource {
 public:
  GgufSource(GgufFile file, const ModelConfig& config)
      : file_(std::move(file)), heads_(config.num_attention_heads), kv_heads_(config.num_key_value_heads) {
    for (const auto& [name, tensor] : file_.tensors()) {
      if (const auto hf = hugging_face_name(name)) {
        where_[*hf] = name;
      } else {
        CMOE_CHECK(name == "rope_freqs.weight", "{}: tensor '{}' is not part of a llama model", file_.name(), name);
      }
    }
  }

  std::vector<std::string> names() const override {
    std::vector<std::string> names;
    for (const auto& [name, gguf] : where_) names.push_back(name);
    return names;
  }
  bool contains(const std::string& name) const override { return where_.contains(name); }
  Shape shape(const std::string& name) const override { return file_.tensor(stored_name(name)).shape; }
  int64_t stored_bytes(const std::string& name) const override { return file_.tensor(stored_name(name)).bytes; }
  std::string stored_type(const std::string& name) const override {
    return std::string(cmoe::name_of(file_.stored_type(stored_name(name))));
  }
  Tensor read(const std::string& name, const Shape& expected, DType as) const override {
    check_shape(file_.name(), name, shape(name), expected);
    Tensor tensor = file_.read(stored_name(name), as);
    check_finite(file_.name(), name, tensor);
    if (name.ends_with("self_attn.q_proj.weight")) return rows_from_interleaved(tensor, heads_);
    if (name.ends_with("self_attn.k_proj.weight")) return rows_from_interleaved(tensor, kv_heads_);
    return tensor;
  }
  void hash_sample_of(const std::string& name, Sha256& hash) const override {
    hash_sample(
        stored_bytes(name),
        [&](int64_t begin, int64_t count, void* to) { file_.read_bytes(stored_name(name), begin, count, to); }, hash);
  }
  std::string file_of(const std::string&) const override { return file_.name(); }

 private:
  const std::string& stored_name(const std::string& name) const {
    const auto found = where_.find(name);
    CMOE_CHECK(found != where_.end(), "{}: tensor '{}' ({}) is missing", file_.name(), name,
               gguf_name(name).value_or("no GGUF name"));
    return found->second;
  }

  GgufFile file_;
  int64_t heads_, kv_heads_;
  std::map<std::string, std::string> where_;  // Hugging Face's name -> the file's
};

// A tensor that is there but that the config knows nothing of would be dropped in silence (a bias, a layer too many).
bool may_be_ignored(const std::string& name, const ModelConfig& config) {
  return name.ends_with(".rotary_emb.inv_freq") || (config.tie_word_embeddings && name == "lm_head.weight");
}

void check_tensors(const Checkpoint& checkpoint) {
  const TensorSource& tensors = *checkpoint.tensors;
  std::set<std::string> known;
  for (const ExpectedTensor& expected : expected_tensors(checkpoint.config)) {
    check_shape(tensors.file_of(expected.name), expected.name, tensors.shape(expected.name), expected.shape,
                expected.dimensions);
    tensors.stored_type(expected.name);  // refuses what cannot be decoded
    known.insert(expected.name);
  }
  for (const std::string& name : tensors.names()) {
    CMOE_CHECK(known.contains(name) || may_be_ignored(name, checkpoint.config),
               "{}: holds tensor '{}', which the config does not call for", tensors.file_of(name), name);
  }
}

}  // namespace

Checkpoint open_checkpoint(const fs::path& path) {
  Checkpoint checkpoint;
  checkpoint.path = path;
  CMOE_CHECK(fs::exists(path), "{}: no such file or folder; expected a Hugging Face folder, a GGUF file or a folder cmoe wrote",
             path.string());
  if (fs::is_directory(path)) {
    const fs::path config = path / "config.json";
    CMOE_CHECK(fs::exists(config), "{}: has no config.json; expected a Hugging Face folder", path.string());
    checkpoint.format = "safetensors";
    checkpoint.config = ModelConfig::from_json(parse_strict_json(read_text_file(config), config.string()), config.string());
    checkpoint.tensors = std::make_unique<SafetensorsSource>(path, checkpoint.config.tie_word_embeddings);
  } else {
    CMOE_CHECK(path.extension() != ".safetensors",
               "{}: is a lone safetensors file; give the folder that holds it and its config.json", path.string());
    GgufFile file(path);
    checkpoint.format = "gguf";
    checkpoint.config = config_from_gguf(file);
    checkpoint.tensors = std::make_unique<GgufSource>(std::move(file), checkpoint.config);
  }
  check_tensors(checkpoint);
  return checkpoint;
}

}  // namespace cmoe

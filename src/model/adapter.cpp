#include "model/adapter.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "base/parallel.h"
#include "tensor/safetensors.h"
#include "tensor/strict_json.h"

namespace cmoe {
namespace {

namespace fs = std::filesystem;

constexpr const char* kPrefix = "base_model.model.";

// adapter_config.json, the part that decides the result.
struct Config {
  double rank, alpha;
  bool rslora;
  std::map<std::string, double> rank_pattern, alpha_pattern;  // by module path
};

Config read_config(const fs::path& path) {
  CMOE_CHECK(fs::exists(path), "{}: missing; expected a folder with an adapter in PEFT's layout", path.string());
  const nlohmann::json json = parse_strict_json(read_text_file(path), path.string());
  const auto text = [&](const char* key) {
    return json.contains(key) && json[key].is_string() ? json[key].get<std::string>() : "";
  };
  CMOE_CHECK(text("peft_type") == "LORA", "{}: peft_type is '{}', expected LORA", path.string(), text("peft_type"));
  for (const char* key : {"use_dora", "fan_in_fan_out", "use_qalora"})
    CMOE_CHECK(!json.contains(key) || json[key].is_null() || json[key] == false, "{}: {} is set; such adapters are not read",
               path.string(), key);
  CMOE_CHECK(text("bias").empty() || text("bias") == "none", "{}: bias is '{}', expected none", path.string(), text("bias"));
  const auto number = [&](const char* key) {
    CMOE_CHECK(json.contains(key) && json[key].is_number(), "{}: field '{}' is missing or no number", path.string(), key);
    return json[key].get<double>();
  };
  Config config{.rank = number("r"), .alpha = number("lora_alpha"), .rslora = json.value("use_rslora", false)};
  for (const auto& [key, to] : {std::pair{"rank_pattern", &config.rank_pattern}, {"alpha_pattern", &config.alpha_pattern}}) {
    if (!json.contains(key) || json[key].is_null()) continue;
    for (const auto& [module, value] : json[key].items()) {
      CMOE_CHECK(value.is_number(), "{}: {} of '{}' is no number", path.string(), key, module);
      (*to)[module] = value.get<double>();
    }
  }
  return config;
}

double scale_of(const Config& config, const std::string& module, int64_t rank, const std::string& where) {
  // PEFT takes a pattern's key as the end of a module's path, behind a dot.
  const auto find = [&](const std::map<std::string, double>& pattern) -> std::optional<double> {
    for (const auto& [key, value] : pattern) {
      if (module == key || module.ends_with("." + key)) return value;
    }
    return std::nullopt;
  };
  const double expected = find(config.rank_pattern).value_or(config.rank);
  CMOE_CHECK(expected == static_cast<double>(rank), "{}: module '{}' has rank {}, expected {} by adapter_config.json", where,
             module, rank, expected);
  const double alpha = find(config.alpha_pattern).value_or(config.alpha);
  return config.rslora ? alpha / std::sqrt(expected) : alpha / expected;
}

class AdaptedSource : public TensorSource {
 public:
  AdaptedSource(std::unique_ptr<TensorSource> base, std::shared_ptr<const Adapter> adapter)
      : base_(std::move(base)), adapter_(std::move(adapter)) {}

  std::vector<std::string> names() const override {
    std::vector<std::string> names = base_->names();
    for (const auto& [name, tensor] : adapter_->routers) {
      if (!base_->contains(name)) names.push_back(name);
    }
    return names;
  }
  bool contains(const std::string& name) const override { return router(name) || base_->contains(name); }
  Shape shape(const std::string& name) const override { return router(name) ? router(name)->shape() : base_->shape(name); }
  int64_t stored_bytes(const std::string& name) const override {
    return router(name) ? router(name)->bytes() : base_->stored_bytes(name);
  }
  std::string stored_type(const std::string& name) const override { return router(name) ? "F32" : base_->stored_type(name); }
  std::string file_of(const std::string& name) const override {
    return router(name) ? (adapter_->path / "router.safetensors").string() : base_->file_of(name);
  }
  Tensor read(const std::string& name, const Shape& expected, DType as) const override {
    if (const Tensor* stored = router(name)) {
      CMOE_CHECK(stored->shape() == expected, "{}: tensor '{}' has shape {}, expected {}", file_of(name), name,
                 to_string(stored->shape()), to_string(expected));
      return stored->to(as);
    }
    const Adapter::Pair* pair = find_pair(name);
    return pair ? merged(base_->read(name, expected, DType::f32), *pair).to(as) : base_->read(name, expected, as);
  }

  void hash_sample_of(const std::string& name, Sha256& hash) const override {
    if (const Tensor* stored = router(name)) return hash.update(stored->raw(), static_cast<size_t>(stored->bytes()));
    base_->hash_sample_of(name, hash);
    if (const Adapter::Pair* pair = find_pair(name)) {
      for (const Tensor* factor : {&pair->a, &pair->b}) hash.update(factor->raw(), static_cast<size_t>(factor->bytes()));
      hash.update(&pair->scale, sizeof pair->scale);
    }
  }

 private:
  const Tensor* router(const std::string& name) const {
    const auto found = adapter_->routers.find(name);
    return found == adapter_->routers.end() ? nullptr : &found->second;
  }
  const Adapter::Pair* find_pair(const std::string& name) const {
    constexpr std::string_view kWeight = ".weight";
    if (!name.ends_with(kWeight)) return nullptr;
    const auto found = adapter_->modules.find(name.substr(0, name.size() - kWeight.size()));
    return found == adapter_->modules.end() ? nullptr : &found->second;
  }
  // W + scale B A, sums in double
  static Tensor merged(const Tensor& weight, const Adapter::Pair& pair) {
    Tensor sum = weight.clone();  // what a source returns may be shared
    const int64_t rank = pair.a.dim(0), in = pair.a.dim(1);
    parallel_for(sum.dim(0), 16, [&](int64_t begin, int64_t end) {
      std::vector<double> row(static_cast<size_t>(in));
      for (int64_t o = begin; o < end; ++o) {
        std::fill(row.begin(), row.end(), 0.0);
        for (int64_t r = 0; r < rank; ++r) {
          const double b = pair.scale * static_cast<double>(pair.b.row<float>(o)[r]);
          for (int64_t i = 0; i < in; ++i) row[static_cast<size_t>(i)] += b * static_cast<double>(pair.a.row<float>(r)[i]);
        }
        float* to = sum.row<float>(o);
        for (int64_t i = 0; i < in; ++i) to[i] = static_cast<float>(static_cast<double>(to[i]) + row[static_cast<size_t>(i)]);
      }
    });
    return sum;
  }

  std::unique_ptr<TensorSource> base_;
  std::shared_ptr<const Adapter> adapter_;
};

}  // namespace

Adapter read_adapter(const fs::path& folder) {
  const Config config = read_config(folder / "adapter_config.json");
  const fs::path path = folder / "adapter_model.safetensors";
  CMOE_CHECK(fs::exists(path), "{}: missing; expected the weights of the adapter", path.string());
  const SafetensorsFile file(path);
  Adapter adapter{.path = folder, .modules = {}, .routers = {}};
  for (const auto& [name, entry] : file.entries()) {
    constexpr std::string_view kA = ".lora_A.weight", kB = ".lora_B.weight";
    CMOE_CHECK(name.starts_with(kPrefix) && (name.ends_with(kA) || name.ends_with(kB)),
               "{}: tensor '{}' is no LoRA weight; expected base_model.model.<module>.lora_A.weight or lora_B.weight",
               file.name(), name);
    if (name.ends_with(kB)) continue;
    const size_t begin = std::string_view(kPrefix).size();
    const std::string module = name.substr(begin, name.size() - begin - kA.size());
    const std::string b_name = kPrefix + module + std::string(kB);
    CMOE_CHECK(file.contains(b_name), "{}: tensor '{}' is missing beside its lora_A", file.name(), b_name);
    Adapter::Pair pair{.a = file.read(name, DType::f32), .b = file.read(b_name, DType::f32), .scale = 0};
    CMOE_CHECK(pair.a.shape().size() == 2 && pair.b.shape().size() == 2 && pair.a.dim(0) == pair.b.dim(1),
               "{}: module '{}' has lora_A {} and lora_B {}, expected [r, in] and [out, r]", file.name(), module,
               to_string(pair.a.shape()), to_string(pair.b.shape()));
    pair.scale = scale_of(config, module, pair.a.dim(0), file.name());
    adapter.modules.emplace(module, std::move(pair));
  }
  CMOE_CHECK(2 * adapter.modules.size() == file.entries().size(), "{}: {} tensors make {} pairs; a lora_B has no lora_A",
             file.name(), file.entries().size(), adapter.modules.size());
  if (const fs::path routers = folder / "router.safetensors"; fs::exists(routers)) {
    const SafetensorsFile router_file(routers);
    for (const auto& [name, entry] : router_file.entries()) adapter.routers[name] = router_file.read(name, DType::f32);
  }
  return adapter;
}

Checkpoint with_adapter(Checkpoint base, std::shared_ptr<const Adapter> adapter) {
  const auto refuse = [&](const std::string& what, const std::string& expected) {
    fail("{}: {}, expected {}; it was made for another model than {}", adapter->path.string(), what, expected,
         base.path.string());
  };
  for (const auto& [module, pair] : adapter->modules) {
    const std::string name = module + ".weight";
    if (!base.tensors->contains(name)) refuse(fmt::format("adapts '{}'", module), "a matrix of the model");
    const Shape found{pair.b.dim(0), pair.a.dim(1)}, expected = base.tensors->shape(name);
    if (found != expected) refuse(fmt::format("adapts '{}' as {}", module, to_string(found)), to_string(expected));
  }
  for (const auto& [name, tensor] : adapter->routers) {
    if (!base.config.moe) refuse(fmt::format("has '{}'", name), "no router in a dense model");
    const bool scale = name.ends_with(".router.scale"), bias = name.ends_with(".router.selection_bias");
    if (scale || bias) {
      if (tensor.shape() != Shape{base.config.moe->num_routed_experts()})
        refuse(fmt::format("has '{}' {}", name, to_string(tensor.shape())),
               fmt::format("[{}] (routed experts)", base.config.moe->num_routed_experts()));
      (scale ? base.config.moe->router_scale : base.config.moe->router_selection_bias) = true;
    } else if (!base.tensors->contains(name) || base.tensors->shape(name) != tensor.shape()) {
      refuse(fmt::format("has '{}' {}", name, to_string(tensor.shape())), "a router tensor of the model");
    }
  }
  base.tensors = std::make_unique<AdaptedSource>(std::move(base.tensors), std::move(adapter));
  return base;
}

Checkpoint open_checkpoint(const fs::path& path, const std::string& adapter) {
  Checkpoint checkpoint = open_checkpoint(path);
  if (adapter.empty()) return checkpoint;
  return with_adapter(std::move(checkpoint), std::make_shared<const Adapter>(read_adapter(adapter)));
}

}  // namespace cmoe

#include "train/lora.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/random.h"

namespace cmoe {
namespace {

void multiply_by(float factor, const Tensor& x) {
  for (float& value : x.span<float>()) value *= factor;
}

uint64_t hash_of(const std::string& text) {
  uint64_t hash = 0;
  for (unsigned char c : text) hash = random_bits(hash, c);
  return hash;
}

// Of modules of which at least one is adapted.
template <class Module>
DropoutMask mask_of(const SequencePass& pass, std::span<const int32_t> tokens, std::initializer_list<Module> modules) {
  const auto* first = std::find_if(modules.begin(), modules.end(), [](const Module& one) { return one.module.adapted(); });
  return {.row = tokens, .key = random_bits(pass.dropout_key, first->module.id), .p = pass.dropout};
}

}  // namespace

void LoraLinear::adapt(ParameterSet& parameters, int64_t rank, float lora_scale) {
  a = parameters.add(module + ".lora_A", {rank, base->in_features()}, ParameterGroup::lora);
  b = parameters.add(module + ".lora_B", {base->out_features(), rank}, ParameterGroup::lora);
  scale = lora_scale;
  id = hash_of(module);
}

void LoraLinear::initialise(const ParameterSet& parameters, uint64_t seed) const {
  if (!adapted()) return;
  const Tensor values = parameters.value(a);
  const double bound = 1.0 / std::sqrt(static_cast<double>(base->in_features()));
  const uint64_t key = random_bits(seed, id);
  uint64_t counter = 0;
  for (float& value : values.span<float>()) {
    const double unit = static_cast<double>(random_bits(key, counter++) >> 11) * 0x1p-53;  // [0, 1)
    value = static_cast<float>((2 * unit - 1) * bound);
  }
}

void LoraLinear::pack(const Backend& backend, const ParameterSet& parameters) {
  if (!adapted()) return;
  a_packed = backend.prepare_narrow(parameters.value(a));
  b_packed = backend.prepare_narrow(parameters.value(b));
}

void lora_forward(const SequencePass& pass, const Tensor& x, std::span<const int32_t> tokens,
                  std::initializer_list<LoraOutput> modules, bool accumulate) {
  std::vector<Weight> a;
  std::vector<Tensor> u;
  for (const auto& [module, y, saved] : modules) {
    pass.backend.linear(x, *module.base, y, accumulate);
    if (!module.adapted()) continue;
    saved.u = Tensor(DType::f32, {x.dim(0), module.a_packed.out_features()});
    a.push_back(module.a_packed);
    u.push_back(saved.u);
  }
  if (a.empty()) return;
  pass.backend.dropout_linear(x, mask_of(pass, tokens, modules), a, u);
  for (const auto& [module, y, saved] : modules) {
    if (!module.adapted()) continue;
    multiply_by(module.scale, saved.u);
    pass.backend.linear(saved.u, module.b_packed, y, /*accumulate=*/true);
  }
}

// dB += dy^T u,  du = scale dy B,  dA += du^T dropout(x),  dx += dy W + dropout(du A)
void lora_backward(const SequencePass& pass, const Tensor& x, std::span<const int32_t> tokens,
                   std::initializer_list<LoraGradient> modules, Tensor& dx, bool accumulate) {
  std::vector<Weight> a;
  std::vector<Tensor> du, da;
  for (const auto& [module, dy, saved] : modules) {
    pass.backend.linear_transposed(dy, *module.base, dx, accumulate);
    accumulate = true;
    if (!module.adapted()) continue;
    Tensor db = pass.parameters.view(*pass.gradient, module.b);
    pass.backend.multiply_transposed(dy, saved.u, db, /*accumulate=*/true);
    a.push_back(module.a_packed);
    da.push_back(pass.parameters.view(*pass.gradient, module.a));
    du.emplace_back(DType::f32, saved.u.shape());
    pass.backend.linear_transposed(dy, module.b_packed, du.back());
    multiply_by(module.scale, du.back());
  }
  if (!a.empty()) pass.backend.dropout_linear_backward(x, mask_of(pass, tokens, modules), a, du, da, dx);
}

}  // namespace cmoe

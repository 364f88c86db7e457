#include "train/lora.h"

#include <cmath>

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

void LoraLinear::forward(const SequencePass& pass, const Tensor& x, std::span<const int32_t> tokens, Tensor& y, bool accumulate,
                         Saved& saved) const {
  pass.backend.linear(x, *base, y, accumulate);
  if (!adapted()) return;
  saved.u = Tensor(DType::f32, {x.dim(0), a_packed.out_features()});
  if (pass.dropout > 0) {
    Tensor kept(DType::f32, x.shape());
    pass.backend.dropout(x, tokens, mask_key(pass), pass.dropout, kept);
    pass.backend.linear(kept, a_packed, saved.u);
  } else {
    pass.backend.linear(x, a_packed, saved.u);
  }
  multiply_by(scale, saved.u);
  pass.backend.linear(saved.u, b_packed, y, /*accumulate=*/true);
}

// dB += dy^T u,  du = scale dy B,  dA += du^T dropout(x),  dx += dy W + dropout(du A)
void LoraLinear::backward(const SequencePass& pass, const Tensor& x, std::span<const int32_t> tokens, const Tensor& dy,
                          const Saved& saved, Tensor& dx, bool accumulate) const {
  pass.backend.linear_transposed(dy, *base, dx, accumulate);
  if (!adapted() || x.dim(0) == 0) return;
  Tensor db = pass.parameters.view(*pass.gradient, b), da = pass.parameters.view(*pass.gradient, a);
  pass.backend.multiply_transposed(dy, saved.u, db, /*accumulate=*/true);
  Tensor du(DType::f32, saved.u.shape());
  pass.backend.linear_transposed(dy, b_packed, du);
  multiply_by(scale, du);
  if (pass.dropout == 0) {
    pass.backend.multiply_transposed(du, x, da, /*accumulate=*/true);
    pass.backend.linear_transposed(du, a_packed, dx, /*accumulate=*/true);
    return;
  }
  Tensor work(DType::f32, x.shape());
  pass.backend.dropout(x, tokens, mask_key(pass), pass.dropout, work);
  pass.backend.multiply_transposed(du, work, da, /*accumulate=*/true);
  pass.backend.linear_transposed(du, a_packed, work);
  pass.backend.dropout(work, tokens, mask_key(pass), pass.dropout, dx, /*accumulate=*/true);
}

}  // namespace cmoe

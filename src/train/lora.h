#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "backend/backend.h"
#include "train/parameters.h"

namespace cmoe {

/// What the pieces of a training step share while one sequence passes through them.
struct SequencePass {
  const Backend& backend;
  const ParameterSet& parameters;
  const Tensor* gradient = nullptr;  ///< flat, added to; unused in forward
  uint64_t dropout_key = 0;          ///< of (seed, step, sequence)
  float dropout = 0;                 ///< 0 where nothing is trained
  float token_weight = 1;            ///< of a token in the loss: 1 / the targets of a step
};

/// y = x W^T + scale (dropout(x) A^T) B^T with W frozen, A [r, in] and B [out, r] trained.
/// Source: LoRA (arXiv:2106.09685), section 4.1; scale = alpha / r, or alpha / sqrt(r) (rsLoRA, arXiv:2312.03732).
struct LoraLinear {
  const Weight* base = nullptr;
  std::string module;      ///< Hugging Face's path: "model.layers.0.mlp.experts.3.up_proj"
  int64_t a = -1, b = -1;  ///< indices of the parameters; -1 where the module has no adapter
  float scale = 0;
  Weight a_packed, b_packed;
  uint64_t id = 0;  ///< of the module's name: for its random numbers

  bool adapted() const { return a >= 0; }
  /// Declares A and B.
  void adapt(ParameterSet& parameters, int64_t rank, float lora_scale);
  /// A uniform in +-1 / sqrt(in) (as PEFT's kaiming_uniform with a = sqrt 5), B zero.
  void initialise(const ParameterSet& parameters, uint64_t seed) const;
  /// Packs the values of now.
  void pack(const Backend& backend, const ParameterSet& parameters);

  struct Saved {
    Tensor u;  ///< scale dropout(x) A^T [T, r]
  };
};

/// A module in a forward pass: what it writes.
struct LoraOutput {
  const LoraLinear& module;
  Tensor& y;
  LoraLinear::Saved& saved;
};
/// ... and in backward: what it reads.
struct LoraGradient {
  const LoraLinear& module;
  const Tensor& dy;
  const LoraLinear::Saved& saved;
};

/// y = or += each module's output. The modules read the same x [T, in], and their adapters read it under the same dropout mask:
/// that of the first that has one. (PEFT drops for each module anew; the expectation is the same.)
/// @param tokens  numbers of the rows in their sequence, so that a row's mask does not depend on where a batch put it; empty
/// means row i.
void lora_forward(const SequencePass& pass, const Tensor& x, std::span<const int32_t> tokens,
                  std::initializer_list<LoraOutput> modules, bool accumulate);
/// dx = or += the sum of the modules' gradients; those of A and B are added to the pass's. @param x, modules  as in forward.
void lora_backward(const SequencePass& pass, const Tensor& x, std::span<const int32_t> tokens,
                   std::initializer_list<LoraGradient> modules, Tensor& dx, bool accumulate);

}  // namespace cmoe

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "tensor/tensor.h"

namespace cmoe {

/// A weight matrix [out_features, in_features] in the layout that a backend's kernels read. Copies share it.
class Weight {
 public:
  struct Impl {
    virtual ~Impl() = default;
  };

  Weight() = default;
  Weight(int64_t out_features, int64_t in_features, DType dtype, std::shared_ptr<const Impl> impl)
      : out_features_(out_features), in_features_(in_features), dtype_(dtype), impl_(std::move(impl)) {}

  bool defined() const { return impl_ != nullptr; }
  int64_t out_features() const { return out_features_; }
  int64_t in_features() const { return in_features_; }
  DType dtype() const { return dtype_; }
  int64_t bytes() const { return out_features_ * in_features_ * size_of(dtype_); }
  const Impl& impl() const { return *impl_; }

 private:
  int64_t out_features_ = 0, in_features_ = 0;
  DType dtype_ = DType::f32;
  std::shared_ptr<const Impl> impl_;
};

/// The rows of one sequence in a ragged batch, and its slice of one layer's KV cache.
struct AttentionSpan {
  int64_t row_begin;  ///< first row of the batch that belongs to the sequence
  int64_t rows;       ///< its rows in this step; 0 is ordinary
  int64_t past;       ///< its tokens already in the cache: row i of the span has position past + i
  float* key;         ///< [kv_heads, capacity, head_dim]
  float* value;       ///< [kv_heads, capacity, head_dim]
  int64_t capacity;   ///< >= past + rows
};

/// Every operation on tensors, documented and checked once; CPU now, CUDA behind the same calls. Activations are f32
/// [rows, columns]; weights are prepared once. All calls accept zero rows.
///
/// Determinism: with f32 weights each output row depends on its own inputs alone, to the bit: not on the other rows, their
/// number, or the number of threads. With bf16 weights it may move within the rounding of bf16 inputs.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string description() const = 0;

  /// Packs `weight` [out_features, in_features] (f32, f16 or bf16) for linear(). `dtype` is f32 or bf16: what is kept and multiplied;
  /// sums are f32.
  virtual Weight prepare(const Tensor& weight, DType dtype) const = 0;

  /// y = x W^T, or y += x W^T. x [T, in_features], y [T, out_features]; y may not overlap x.
  virtual void linear(const Tensor& x, const Weight& weight, Tensor& y, bool accumulate = false) const = 0;

  /// c = a^T b, or c += a^T b; a [T, n], b [T, m], c [n, m], all f32; each element sums over T in order, in f32.
  virtual void multiply_transposed(const Tensor& a, const Tensor& b, Tensor& c, bool accumulate = false) const = 0;

  /// y[t] = table[ids[t]]; table [vocab, d] f32 or bf16, y [T, d].
  virtual void embed(std::span<const int32_t> ids, const Tensor& table, Tensor& y) const = 0;

  /// y = x / sqrt(mean(x^2) + epsilon) * weight, per row. x, y [T, d] (may be the same tensor), weight [d].
  virtual void rms_norm(const Tensor& x, const Tensor& weight, float epsilon, Tensor& y) const = 0;

  /// Rotates pairs (i, i + head_dim / 2) of every head in place: x [T, heads * head_dim]; cos and sin [positions, head_dim / 2];
  /// row t has position positions[t].
  virtual void rope(Tensor& x, int64_t head_dim, std::span<const int32_t> positions, const Tensor& cos, const Tensor& sin) const = 0;

  /// Appends this step's keys and values (k, v [T, kv_heads * head_dim]) to the spans' caches, then causal attention with
  /// scale 1 / sqrt(head_dim): out [T, heads * head_dim]. heads = q columns / head_dim is a multiple of kv_heads.
  virtual void attention(const Tensor& q, const Tensor& k, const Tensor& v, std::span<const AttentionSpan> spans, int64_t head_dim,
                         Tensor& out) const = 0;

  /// h = silu(gate) * up, elementwise; h may be gate or up.
  virtual void swiglu(const Tensor& gate, const Tensor& up, Tensor& h) const = 0;

  /// y += x.
  virtual void add(const Tensor& x, Tensor& y) const = 0;

  /// y[t] += bias, every row; bias [d], y [T, d].
  virtual void add_bias(const Tensor& bias, Tensor& y) const = 0;

  /// out[i] = x[rows[i]]; x [T, d], out [n, d].
  virtual void gather_rows(const Tensor& x, std::span<const int32_t> rows, Tensor& out) const = 0;

  /// -log softmax(x W^T)[target] of each row, in nats; rows whose target is negative give 0. Never holds more than a few hundred
  /// rows of logits. x [T, d], head [vocab, d].
  virtual void cross_entropy(const Tensor& x, const Weight& head, std::span<const int32_t> targets, std::span<double> nll) const = 0;
};

/// Instruction sets of the CPU kernels, best last.
enum class CpuIsa { generic, avx2, avx512, avx512_bf16, amx };

/// The backend on this machine's CPU: kernels chosen at run time, at most `cap` (also CMOE_CPU_ISA, by the names above).
std::unique_ptr<Backend> make_cpu_backend(CpuIsa cap = CpuIsa::amx);

}  // namespace cmoe

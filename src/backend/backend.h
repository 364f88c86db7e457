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

/// Which elements of the rows of x [T, d] a dropout keeps: a mask of 64 random bits per four elements, row t masked by
/// random_bits(key, row[t] ceil(d / 4) + i / 4).
struct DropoutMask {
  std::span<const int32_t> row;  ///< [T] numbers of the rows, or empty: row t
  uint64_t key = 0;
  float p = 0;  ///< of dropping an element, in steps of 2^-16; 0 keeps all
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

  /// Packs `weight` [out_features, in_features] (f32, f16 or bf16) for linear(). `dtype` is f32 or bf16: what is kept and
  /// multiplied; sums are f32.
  virtual Weight prepare(const Tensor& weight, DType dtype) const = 0;

  /// The same in f32 for a weight one of whose sides is short: a matrix of LoRA, packed again after every step. For linear()
  /// and linear_transposed() alone.
  virtual Weight prepare_narrow(const Tensor& weight) const { return prepare(weight, DType::f32); }

  /// y = x W^T, or y += x W^T. x [T, in_features], y [T, out_features]; y may not overlap x.
  virtual void linear(const Tensor& x, const Weight& weight, Tensor& y, bool accumulate = false) const = 0;

  /// c = a^T b, or c += a^T b; a [T, n], b [T, m], c [n, m], all f32; each element sums over T in order, in f32.
  virtual void multiply_transposed(const Tensor& a, const Tensor& b, Tensor& c, bool accumulate = false) const = 0;

  /// y[t] = table[ids[t]]; table [vocab, d] f32 or bf16, y [T, d].
  virtual void embed(std::span<const int32_t> ids, const Tensor& table, Tensor& y) const = 0;

  /// y = x / sqrt(mean(x^2) + epsilon) * weight, per row. x, y [T, d] (may be the same tensor), weight [d].
  virtual void rms_norm(const Tensor& x, const Tensor& weight, float epsilon, Tensor& y) const = 0;

  /// Rotates pairs (i, i + head_dim / 2) of every head in place: x [T, heads * head_dim]; cos and sin [positions, head_dim /
  /// 2]; row t has position positions[t].
  virtual void rope(Tensor& x, int64_t head_dim, std::span<const int32_t> positions, const Tensor& cos,
                    const Tensor& sin) const = 0;

  /// Appends this step's keys and values (k, v [T, kv_heads * head_dim]) to the spans' caches, then causal attention with
  /// scale 1 / sqrt(head_dim): out [T, heads * head_dim]. heads = q columns / head_dim is a multiple of kv_heads.
  /// @param dtype  f32, or bf16: then q, k, v and the softmax's weights may be rounded to bf16 for the products; sums are f32.
  /// @param log_sum  [T, heads], or null: log of the sum of exp(scale q . k) over the keys that a query sees.
  virtual void attention(const Tensor& q, const Tensor& k, const Tensor& v, std::span<const AttentionSpan> spans,
                         int64_t head_dim, DType dtype, Tensor& out, Tensor* log_sum = nullptr) const = 0;

  /// h = silu(gate) * up, elementwise; h may be gate or up.
  virtual void swiglu(const Tensor& gate, const Tensor& up, Tensor& h) const = 0;

  /// y += x.
  virtual void add(const Tensor& x, Tensor& y) const = 0;

  /// y[t] += bias, every row; bias [d], y [T, d].
  virtual void add_bias(const Tensor& bias, Tensor& y) const = 0;

  /// out[i] = x[rows[i]]; x [T, d], out [n, d].
  virtual void gather_rows(const Tensor& x, std::span<const int32_t> rows, Tensor& out) const = 0;

  /// -log softmax(x W^T)[target] of each row, in nats; rows whose target is negative give 0. Never holds more than a few
  /// hundred rows of logits. x [T, d], head [vocab, d].
  virtual void cross_entropy(const Tensor& x, const Weight& head, std::span<const int32_t> targets,
                             std::span<double> nll) const = 0;

  // Sums and solves of carving, then gradients. A backend for inference alone leaves them out; calling one is then an Error
  // that names the backend.

  /// Rows [first, last) of the Gram matrix of some rows of z, from column `first` on:
  ///   c[i - first, j - first] = sum over t in rows, in their order, of z[t, i] z[t, j]   for j >= i, in f32.
  /// c [last - first, columns of z - first]; what lies left of the diagonal is such a sum or 0. Half the work of
  /// multiply_transposed, less what the missing rows would have taken.
  virtual void gram_rows(const Tensor& z, std::span<const int32_t> rows, int64_t first, int64_t last, Tensor& c) const;

  /// sum[j] += x[t, j] and square[j] += x[t, j]^2 over t in order, f64; x [T, n].
  virtual void add_column_moments(const Tensor& x, std::span<double> sum, std::span<double> square) const;

  /// Solves A X = B by Cholesky's factorisation A = U^T U. system [n, n + m] f64 holds [A | B], of A the upper triangle, and
  /// becomes [U | X] (what lies under U is undefined). Each column of X depends on A and its own column of B alone, to the bit.
  /// Returns false, with the system spoilt, when A is not positive definite.
  virtual bool solve_positive_definite(Tensor& system) const;

  /// dx = dy W, or dx += dy W, on the packed weight of linear(): dy [T, out_features], dx [T, in_features]. dx may not overlap
  /// dy. With bf16 weights dy is rounded to bf16; sums are f32.
  virtual void linear_transposed(const Tensor& dy, const Weight& weight, Tensor& dx, bool accumulate = false) const;

  /// dx += gradient of rms_norm(x) given dy; x, dy, dx [T, d]. The norm's weight is a constant.
  virtual void rms_norm_backward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& dy, Tensor& dx) const;

  /// y = x keep / (1 - p), or y += that; x, y [T, d].
  virtual void dropout(const Tensor& x, const DropoutMask& mask, Tensor& y, bool accumulate = false) const;

  /// u_i = dropout(x) A_i^T for matrices of LoRA that read the same x under the same mask: x [T, d], A_i [r_i, d] of
  /// prepare_narrow(), u_i [T, r_i].
  virtual void dropout_linear(const Tensor& x, const DropoutMask& mask, std::span<const Weight> a, std::span<Tensor> u) const;

  /// Its gradients: da_i += du_i^T dropout(x), dx += dropout(sum_i du_i A_i); da_i [r_i, d], dx [T, d].
  virtual void dropout_linear_backward(const Tensor& x, const DropoutMask& mask, std::span<const Weight> a,
                                       std::span<const Tensor> du, std::span<Tensor> da, Tensor& dx) const;

  /// dgate = dh up silu'(gate), dup = dh silu(gate); both may be one of the inputs.
  virtual void swiglu_backward(const Tensor& gate, const Tensor& up, const Tensor& dh, Tensor& dgate, Tensor& dup) const;

  /// Gradients of attention() over whole sequences (past = 0; the caches are not read), from its inputs after rope, its output
  /// and log_sum, and dout; the weights are computed again, in blocks. dq [T, heads * head_dim], dk and dv [T, kv_heads *
  /// head_dim]; rows outside the spans become zero.
  virtual void attention_backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& log_sum,
                                  const Tensor& dout, std::span<const AttentionSpan> spans, int64_t head_dim, Tensor& dq,
                                  Tensor& dk, Tensor& dv) const;

  /// The loss of each row and its gradient dx [T, d] with respect to x, a few hundred rows of logits at a time:
  ///   loss_t = nll_weight (-log softmax(z)[target]) + kl_weight tau^2 KL(softmax(z' / tau) || softmax(z / tau)),
  /// z = x W^T, z' the teacher's logits. Rows whose target is negative have neither.
  struct LossWeights {
    float nll = 1, kl = 0;
    float temperature = 1;                 ///< tau
    const Tensor* teacher_x = nullptr;     ///< [T, d'], needed where kl > 0
    const Weight* teacher_head = nullptr;  ///< [vocab, d']
  };
  /// @param nll, kl  of each row, nats, before weighting and tau^2; kl is 0 without a teacher.
  virtual void cross_entropy_backward(const Tensor& x, const Weight& head, std::span<const int32_t> targets,
                                      const LossWeights& weights, std::span<double> nll, std::span<double> kl,
                                      Tensor& dx) const;
};

/// Instruction sets of the CPU kernels, best last.
enum class CpuIsa { generic, avx2, avx512, avx512_bf16, amx };

/// The backend on this machine's CPU: kernels chosen at run time, at most `cap` (also CMOE_CPU_ISA, by the names above).
std::unique_ptr<Backend> make_cpu_backend(CpuIsa cap = CpuIsa::amx);

}  // namespace cmoe

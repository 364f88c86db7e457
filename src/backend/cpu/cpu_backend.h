#pragma once

#include <cstddef>

#include "backend/backend.h"
#include "kernels/cpu/table.h"

namespace cmoe::cpu {

struct NarrowWeight;

/// Checks shapes, splits work over threads, calls the kernels of one instruction set.
class CpuBackend : public Backend {
 public:
  CpuBackend(CpuIsa isa, const kernels::Table& table, const kernels::Gemm& bf16, const kernels::Attention& bf16_attention)
      : isa_(isa), table_(table), bf16_(bf16), bf16_attention_(bf16_attention) {}

  std::string description() const override;
  Weight prepare(const Tensor& weight, DType dtype) const override;
  Weight prepare_narrow(const Tensor& weight) const override;
  void linear(const Tensor& x, const Weight& weight, Tensor& y, bool accumulate) const override;
  void multiply_transposed(const Tensor& a, const Tensor& b, Tensor& c, bool accumulate) const override;
  void gram_rows(const Tensor& z, std::span<const int32_t> rows, int64_t first, int64_t last, Tensor& c) const override;
  void add_column_moments(const Tensor& x, std::span<double> sum, std::span<double> square) const override;
  bool solve_positive_definite(Tensor& system) const override;
  void embed(std::span<const int32_t> ids, const Tensor& table, Tensor& y) const override;
  void rms_norm(const Tensor& x, const Tensor& weight, float epsilon, Tensor& y) const override;
  void rope(Tensor& x, int64_t head_dim, std::span<const int32_t> positions, const Tensor& cos,
            const Tensor& sin) const override;
  void attention(const Tensor& q, const Tensor& k, const Tensor& v, std::span<const AttentionSpan> spans, int64_t head_dim,
                 DType dtype, Tensor& out, Tensor* log_sum) const override;
  void swiglu(const Tensor& gate, const Tensor& up, Tensor& h) const override;
  void add(const Tensor& x, Tensor& y) const override;
  void add_bias(const Tensor& bias, Tensor& y) const override;
  void gather_rows(const Tensor& x, std::span<const int32_t> rows, Tensor& out) const override;
  void cross_entropy(const Tensor& x, const Weight& head, std::span<const int32_t> targets,
                     std::span<double> nll) const override;
  void linear_transposed(const Tensor& dy, const Weight& weight, Tensor& dx, bool accumulate) const override;
  void dropout(const Tensor& x, const DropoutMask& mask, Tensor& y, bool accumulate) const override;
  void dropout_linear(const Tensor& x, const DropoutMask& mask, std::span<const Weight> a, std::span<Tensor> u) const override;
  void dropout_linear_backward(const Tensor& x, const DropoutMask& mask, std::span<const Weight> a, std::span<const Tensor> du,
                               std::span<Tensor> da, Tensor& dx) const override;
  void rms_norm_backward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& dy, Tensor& dx) const override;
  void swiglu_backward(const Tensor& gate, const Tensor& up, const Tensor& dh, Tensor& dgate, Tensor& dup) const override;
  void attention_backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& log_sum,
                          const Tensor& dout, std::span<const AttentionSpan> spans, int64_t head_dim, Tensor& dq, Tensor& dk,
                          Tensor& dv) const override;
  void cross_entropy_backward(const Tensor& x, const Weight& head, std::span<const int32_t> targets, const LossWeights& weights,
                              std::span<double> nll, std::span<double> kl, Tensor& dx) const override;

 private:
  void narrow_linear(const Tensor& x, const NarrowWeight& weight, Tensor& y, bool accumulate) const;
  void narrow_linear_transposed(const Tensor& dy, const NarrowWeight& weight, Tensor& dx, bool accumulate) const;
  void narrow_outer(const Tensor& a, const Tensor& b, Tensor& c, bool accumulate) const;
  const kernels::Gemm& gemm(DType dtype) const { return dtype == DType::bf16 ? bf16_ : table_.f32; }

  CpuIsa isa_;
  const kernels::Table& table_;
  const kernels::Gemm& bf16_;
  const kernels::Attention& bf16_attention_;
};

/// 64-byte aligned memory that grows and stays: scratch of one thread, valid until its next resize.
class Scratch {
 public:
  std::byte* resize(int64_t bytes);

 private:
  Tensor memory_;
};

/// @throws Error "where: name is f32 [4, 5], expected f32 [rows, 8]" unless `tensor` is a matrix of f32 of that shape; -1 fits
/// any.
void check_matrix(const char* where, const char* name, const Tensor& tensor, int64_t rows, int64_t columns);

}  // namespace cmoe::cpu

#include "backend/backend.h"

#include "base/error.h"

namespace cmoe {
namespace {

[[noreturn]] void refuse(const Backend& backend, const char* operation) {
  fail("backend '{}': has no {}; carve and train on the CPU backend", backend.description(), operation);
}

}  // namespace

void Backend::gram_rows(const Tensor&, std::span<const int32_t>, int64_t, int64_t, Tensor&) const {
  refuse(*this, "gram_rows");
}

void Backend::add_column_moments(const Tensor&, std::span<double>, std::span<double>) const {
  refuse(*this, "add_column_moments");
}

bool Backend::solve_positive_definite(Tensor&) const { refuse(*this, "solve_positive_definite"); }

void Backend::linear_transposed(const Tensor&, const Weight&, Tensor&, bool) const { refuse(*this, "linear_transposed"); }

void Backend::rms_norm_backward(const Tensor&, const Tensor&, float, const Tensor&, Tensor&) const {
  refuse(*this, "rms_norm_backward");
}

void Backend::dropout(const Tensor&, const DropoutMask&, Tensor&, bool) const { refuse(*this, "dropout"); }

void Backend::dropout_linear(const Tensor&, const DropoutMask&, std::span<const Weight>, std::span<Tensor>) const {
  refuse(*this, "dropout_linear");
}

void Backend::dropout_linear_backward(const Tensor&, const DropoutMask&, std::span<const Weight>, std::span<const Tensor>,
                                      std::span<Tensor>, Tensor&) const {
  refuse(*this, "dropout_linear_backward");
}

void Backend::swiglu_backward(const Tensor&, const Tensor&, const Tensor&, Tensor&, Tensor&) const {
  refuse(*this, "swiglu_backward");
}

void Backend::attention_backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                 std::span<const AttentionSpan>, int64_t, Tensor&, Tensor&, Tensor&) const {
  refuse(*this, "attention_backward");
}

void Backend::cross_entropy_backward(const Tensor&, const Weight&, std::span<const int32_t>, const LossWeights&,
                                     std::span<double>, std::span<double>, Tensor&) const {
  refuse(*this, "cross_entropy_backward");
}

}  // namespace cmoe

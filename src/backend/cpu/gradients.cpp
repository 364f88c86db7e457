#include <algorithm>

#include "backend/cpu/cpu_backend.h"
#include "base/error.h"
#include "base/parallel.h"

namespace cmoe::cpu {

void CpuBackend::rms_norm_backward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& dy, Tensor& dx) const {
  check_matrix("rms_norm_backward", "x", x, -1, -1);
  const int64_t rows = x.dim(0), d = x.dim(1);
  check_matrix("rms_norm_backward", "dy", dy, rows, d);
  check_matrix("rms_norm_backward", "dx", dx, rows, d);
  CMOE_CHECK(weight.dtype() == DType::f32 && weight.shape() == Shape{d},
             "rms_norm_backward: weight is {} {}, expected f32 [{}]", name_of(weight.dtype()), to_string(weight.shape()), d);
  parallel_for(rows, std::max<int64_t>(1, 4096 / std::max<int64_t>(d, 1)), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      table_.rms_norm_backward(x.row<float>(t), weight.data<float>(), dy.row<float>(t), d, epsilon, dx.row<float>(t));
    }
  });
}

void CpuBackend::swiglu_backward(const Tensor& gate, const Tensor& up, const Tensor& dh, Tensor& dgate, Tensor& dup) const {
  check_matrix("swiglu_backward", "gate", gate, -1, -1);
  const int64_t rows = gate.dim(0), n = gate.dim(1);
  check_matrix("swiglu_backward", "up", up, rows, n);
  check_matrix("swiglu_backward", "dh", dh, rows, n);
  check_matrix("swiglu_backward", "dgate", dgate, rows, n);
  check_matrix("swiglu_backward", "dup", dup, rows, n);
  parallel_for(gate.size(), 2048, [&](int64_t begin, int64_t end) {
    table_.swiglu_backward(gate.data<float>() + begin, up.data<float>() + begin, dh.data<float>() + begin, end - begin,
                           dgate.data<float>() + begin, dup.data<float>() + begin);
  });
}

}  // namespace cmoe::cpu

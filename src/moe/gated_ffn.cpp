#include "moe/gated_ffn.h"

#include <algorithm>

namespace cmoe {

void gated_ffn(const Backend& backend, const GatedFfn& ffn, const Tensor& x, Tensor& y, bool accumulate) {
  constexpr int64_t kBlock = 2048;  // rows whose gate and up are held at a time
  const int64_t tokens = x.dim(0);
  if (tokens == 0) return;
  Tensor gate(DType::f32, {std::min(tokens, kBlock), ffn.neurons()});
  Tensor up(DType::f32, gate.shape());
  for (int64_t begin = 0; begin < tokens; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, tokens);
    Tensor g = gate.rows(0, end - begin);
    Tensor u = up.rows(0, end - begin);
    Tensor out = y.rows(begin, end);
    backend.linear(x.rows(begin, end), ffn.gate, g);
    backend.linear(x.rows(begin, end), ffn.up, u);
    backend.swiglu(g, u, g);
    backend.linear(g, ffn.down, out, accumulate);
    if (ffn.down_bias.size() > 0) backend.add_bias(ffn.down_bias, out);
  }
}

}  // namespace cmoe

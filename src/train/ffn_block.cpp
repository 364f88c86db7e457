#include "train/ffn_block.h"

namespace cmoe {

void FfnBlock::forward(const SequencePass& pass, const Tensor& x, std::span<const int32_t> tokens, Tensor& y, bool accumulate,
                       Saved& saved) const {
  saved.gate = Tensor(DType::f32, {x.dim(0), gate.base->out_features()});
  saved.up = Tensor(DType::f32, saved.gate.shape());
  gate.forward(pass, x, tokens, saved.gate, false, saved.gate_lora);
  up.forward(pass, x, tokens, saved.up, false, saved.up_lora);
  Tensor h(DType::f32, saved.gate.shape());
  pass.backend.swiglu(saved.gate, saved.up, h);
  down.forward(pass, h, tokens, y, accumulate, saved.down_lora);
  if (down_bias) pass.backend.add_bias(*down_bias, y);
}

void FfnBlock::backward(const SequencePass& pass, const Tensor& x, std::span<const int32_t> tokens, const Tensor& dy,
                        const Saved& saved, Tensor& dx, bool accumulate) const {
  Tensor h(DType::f32, saved.gate.shape()), dh(DType::f32, saved.gate.shape());
  pass.backend.swiglu(saved.gate, saved.up, h);  // cheaper to compute again than to keep
  down.backward(pass, h, tokens, dy, saved.down_lora, dh, false);
  Tensor& dgate = h;
  pass.backend.swiglu_backward(saved.gate, saved.up, dh, dgate, dh);
  gate.backward(pass, x, tokens, dgate, saved.gate_lora, dx, accumulate);
  up.backward(pass, x, tokens, dh, saved.up_lora, dx, true);
}

}  // namespace cmoe

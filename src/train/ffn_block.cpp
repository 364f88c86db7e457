#include "train/ffn_block.h"

namespace cmoe {

void FfnBlock::forward(const SequencePass& pass, const Tensor& x, std::span<const int32_t> tokens, Tensor& y, bool accumulate,
                       Saved& saved) const {
  saved.gate = Tensor(DType::f32, {x.dim(0), gate.base->out_features()});
  saved.up = Tensor(DType::f32, saved.gate.shape());
  lora_forward(pass, x, tokens, {{gate, saved.gate, saved.gate_lora}, {up, saved.up, saved.up_lora}}, false);
  Tensor h(DType::f32, saved.gate.shape());
  pass.backend.swiglu(saved.gate, saved.up, h);
  lora_forward(pass, h, tokens, {{down, y, saved.down_lora}}, accumulate);
  if (down_bias) pass.backend.add_bias(*down_bias, y);
}

void FfnBlock::backward(const SequencePass& pass, const Tensor& x, std::span<const int32_t> tokens, const Tensor& dy,
                        const Saved& saved, Tensor& dx, bool accumulate) const {
  Tensor h(DType::f32, saved.gate.shape()), dh(DType::f32, saved.gate.shape());
  pass.backend.swiglu(saved.gate, saved.up, h);  // cheaper to compute again than to keep
  lora_backward(pass, h, tokens, {{down, dy, saved.down_lora}}, dh, false);
  Tensor& dgate = h;
  pass.backend.swiglu_backward(saved.gate, saved.up, dh, dgate, dh);
  lora_backward(pass, x, tokens, {{gate, dgate, saved.gate_lora}, {up, dh, saved.up_lora}}, dx, accumulate);
}

}  // namespace cmoe

#include "kernels/cpu/isa/kernels.h"

#define CMOE_JOIN2(a, b) a##b
#define CMOE_JOIN(a, b) CMOE_JOIN2(a, b)
#define CMOE_TEXT2(a) #a
#define CMOE_TEXT(a) CMOE_TEXT2(a)

namespace cmoe::kernels {

const Table& CMOE_JOIN(table_, CMOE_ISA)() {
  static const Table table{
      .name = CMOE_TEXT(CMOE_ISA),
      .f32 = CMOE_ISA::gemm_f32(),
      .bf16 = CMOE_ISA::gemm_bf16(),
      .f64 = CMOE_ISA::f64(),
      .attention = CMOE_ISA::attention(),
      .pack_panel_f32 = CMOE_ISA::pack_panel_f32,
      .pack_panel_bf16 = CMOE_ISA::pack_panel_bf16,
      .transpose_panel_bf16 = CMOE_ISA::transpose_panel_bf16,
      .pack_columns = CMOE_ISA::pack_columns,
      .pack_columns_panel = CMOE_ISA::pack_columns_panel,
      .pack_listed_tiles = CMOE_ISA::pack_listed_tiles,
      .pack_listed_panels = CMOE_ISA::pack_listed_panels,
      .add_column_moments = CMOE_ISA::add_column_moments,
      .slice_maxima = CMOE_ISA::slice_maxima,
      .list_magnitudes = CMOE_ISA::list_magnitudes,
      .rms_norm = CMOE_ISA::rms_norm,
      .rope = CMOE_ISA::rope,
      .swiglu = CMOE_ISA::swiglu,
      .add = CMOE_ISA::add,
      .exp = CMOE_ISA::exp_all,
      .widen_bf16 = CMOE_ISA::widen_bf16,
      .narrow_bf16 = CMOE_ISA::narrow_bf16,
      .sum_exp = CMOE_ISA::sum_exp,
      .dot = CMOE_ISA::dot,
      .add_scaled = CMOE_ISA::add_scaled,
      .rms_norm_backward = CMOE_ISA::rms_norm_backward,
      .swiglu_backward = CMOE_ISA::swiglu_backward,
      .exp_scaled = CMOE_ISA::exp_scaled,
      .softmax_backward = CMOE_ISA::softmax_backward,
      .narrow_dots = CMOE_ISA::narrow_dots,
      .narrow_sums = CMOE_ISA::narrow_sums,
      .narrow_outer = CMOE_ISA::narrow_outer,
      .dropout = CMOE_ISA::dropout,
  };
  return table;
}

}  // namespace cmoe::kernels

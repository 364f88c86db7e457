#pragma once

#include "kernels/cpu/table.h"

// What the files of one instruction set hand to its table.
namespace cmoe::kernels::CMOE_ISA {

Gemm gemm_f32();
Gemm gemm_bf16();
F64 f64();
Attention attention();
void pack_panel_f32(const float* w, int64_t n, int64_t k, float* panel);
void pack_panel_bf16(const uint16_t* w, int64_t n, int64_t k, uint16_t* panel);
void transpose_panel_bf16(const uint16_t* panel, int64_t k, uint16_t* transposed);
void pack_columns(const float* a, int64_t lda, int64_t n, int64_t t, void* packed);
void pack_columns_panel(const float* b, int64_t ldb, int64_t n, int64_t t, float* panel);

void pack_listed_tiles(const float* z, int64_t ldz, int64_t readable, const int32_t* rows, int64_t t, int64_t columns,
                       int64_t height, int64_t stride, float* packed);
void pack_listed_panels(const float* z, int64_t ldz, const int32_t* rows, int64_t t, int64_t columns, float* panels);
void add_column_moments(const float* x, int64_t ldx, int64_t rows, int64_t columns, double* sum, double* square);

void slice_maxima(const float* x, int64_t n, int64_t slices, int32_t* maxima);
int64_t list_magnitudes(const float* x, int64_t n, int32_t least, int32_t* index);

void rms_norm(const float* x, const float* weight, int64_t n, float epsilon, float* y);
void rope(float* x, const float* cos, const float* sin, int64_t half);
void swiglu(const float* gate, const float* up, int64_t n, float* h);
void add(const float* x, int64_t n, float* y);
void exp_all(const float* x, int64_t n, float* y);
void widen_bf16(const uint16_t* x, int64_t n, float* y);
void narrow_bf16(const float* x, int64_t n, uint16_t* y);
void sum_exp(const float* x, int64_t n, float* max, double* sum);

float dot(const float* a, const float* b, int64_t n);
void add_scaled(const float* x, float factor, int64_t n, float* y);
void rms_norm_backward(const float* x, const float* weight, const float* dy, int64_t n, float epsilon, float* dx);
void swiglu_backward(const float* gate, const float* up, const float* dh, int64_t n, float* dgate, float* dup);
void exp_scaled(const float* x, int64_t n, float scale, float shift, float factor, float* y);
void softmax_backward(float* s, float* dp, int64_t tokens, int64_t group, int64_t seen, const float* log_sum, const float* mean,
                      float scale);

void narrow_dots(const float* x, int64_t ldx, int64_t rows, const float* w, int64_t n, int64_t k, float* y, int64_t ldy);
void narrow_sums(const float* x, int64_t ldx, int64_t rows, const float* w, int64_t ldw, int64_t n, int64_t k, float* y,
                 int64_t ldy, bool add);
void narrow_outer(const float* a, int64_t lda, int64_t n, const float* b, int64_t ldb, int64_t columns, int64_t t, float* c,
                  int64_t ldc, bool add);
void dropout(const float* x, int64_t ldx, int64_t rows, int64_t n, uint64_t state, const uint64_t* counter, uint32_t threshold,
             float keep, float* y, int64_t ldy, bool add);

}  // namespace cmoe::kernels::CMOE_ISA

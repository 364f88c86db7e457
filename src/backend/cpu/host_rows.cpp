#include "backend/host_rows.h"

#include "backend/cpu/kernels_of.h"

namespace cmoe {
namespace {

const kernels::Table& machine_kernels() {
  static const kernels::Table& table = kernels_of(cpu_isa());
  return table;
}

}  // namespace

void slice_maxima(const float* x, int64_t n, int64_t slices, int32_t* maxima) {
  machine_kernels().slice_maxima(x, n, slices, maxima);
}

int64_t list_magnitudes(const float* x, int64_t n, int32_t least, int32_t* index) {
  return machine_kernels().list_magnitudes(x, n, least, index);
}

void add_row(const float* x, int64_t n, float* y) { machine_kernels().add(x, n, y); }

}  // namespace cmoe

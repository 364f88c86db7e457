#include "backend/cpu/cpu_backend.h"

#include <algorithm>
#include <cstring>

#include "backend/cpu/kernels_of.h"
#include "base/error.h"
#include "base/parallel.h"

namespace cmoe::cpu {
namespace {

constexpr int64_t kGrain = 8192;  // elements of an elementwise operation per piece: some microseconds

// Calls body(row) over rows of `columns` elements each.
template <class Body>
void for_each_row(int64_t rows, int64_t columns, const Body& body) {
  parallel_for(rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(columns, 1)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) body(row);
  });
}

void check_index(const char* where, int64_t index, int64_t bound) {
  CMOE_CHECK(index >= 0 && index < bound, "{}: index {}, expected 0 .. {}", where, index, bound - 1);
}

void check_same(const char* where, const Tensor& a, const Tensor& b) {
  CMOE_CHECK(a.dtype() == DType::f32 && b.dtype() == DType::f32 && a.shape() == b.shape(),
             "{}: {} {} and {} {}, expected f32 of one shape", where, name_of(a.dtype()), to_string(a.shape()),
             name_of(b.dtype()), to_string(b.shape()));
}

}  // namespace

std::byte* Scratch::resize(int64_t bytes) {
  if (memory_.bytes() < bytes) {
    memory_ = Tensor();
    memory_ = Tensor(DType::u8, {bytes});
  }
  return static_cast<std::byte*>(memory_.raw());
}

void check_matrix(const char* where, const char* name, const Tensor& tensor, int64_t rows, int64_t columns) {
  const Shape& shape = tensor.shape();
  const bool fits = tensor.dtype() == DType::f32 && shape.size() == 2 && (rows < 0 || shape[0] == rows) &&
                    (columns < 0 || shape[1] == columns);
  if (fits) return;
  const auto text = [](int64_t extent) { return extent < 0 ? std::string("*") : std::to_string(extent); };
  fail("{}: {} is {} {}, expected f32 [{}, {}]", where, name, name_of(tensor.dtype()), to_string(shape), text(rows),
       text(columns));
}

std::string CpuBackend::description() const {
  return fmt::format("CPU, f32 kernels {}, bf16 {}", table_.name, bf16_products(isa_));
}

void CpuBackend::embed(std::span<const int32_t> ids, const Tensor& table, Tensor& y) const {
  CMOE_CHECK(table.shape().size() == 2 && (table.dtype() == DType::f32 || table.dtype() == DType::bf16),
             "embed: the table is {} {}, expected f32 or bf16 [vocab, d]", name_of(table.dtype()), to_string(table.shape()));
  const int64_t d = table.dim(1);
  check_matrix("embed", "y", y, static_cast<int64_t>(ids.size()), d);
  for (int32_t id : ids) check_index("embed", id, table.dim(0));
  for_each_row(y.dim(0), d, [&](int64_t row) {
    const int64_t id = ids[static_cast<size_t>(row)];
    if (table.dtype() == DType::bf16) {
      table_.widen_bf16(table.row<uint16_t>(id), d, y.row<float>(row));
    } else {
      std::memcpy(y.row<float>(row), table.row<float>(id), static_cast<size_t>(d) * sizeof(float));
    }
  });
}

void CpuBackend::rms_norm(const Tensor& x, const Tensor& weight, float epsilon, Tensor& y) const {
  check_matrix("rms_norm", "x", x, -1, -1);
  const int64_t d = x.dim(1);
  check_matrix("rms_norm", "y", y, x.dim(0), d);
  CMOE_CHECK(weight.dtype() == DType::f32 && weight.shape() == Shape{d}, "rms_norm: weight is {} {}, expected f32 [{}]",
             name_of(weight.dtype()), to_string(weight.shape()), d);
  for_each_row(x.dim(0), d,
               [&](int64_t row) { table_.rms_norm(x.row<float>(row), weight.data<float>(), d, epsilon, y.row<float>(row)); });
}

void CpuBackend::rope(Tensor& x, int64_t head_dim, std::span<const int32_t> positions, const Tensor& cos,
                      const Tensor& sin) const {
  check_matrix("rope", "x", x, static_cast<int64_t>(positions.size()), -1);
  const int64_t columns = x.dim(1), half = head_dim / 2;
  CMOE_CHECK(head_dim > 0 && head_dim % 2 == 0 && columns % head_dim == 0,
             "rope: x has {} columns, expected a multiple of an even head_dim; got head_dim {}", columns, head_dim);
  check_matrix("rope", "cos", cos, -1, half);
  check_matrix("rope", "sin", sin, cos.dim(0), half);
  for (int32_t position : positions) check_index("rope", position, cos.dim(0));
  for_each_row(x.dim(0), columns, [&](int64_t row) {
    const int64_t position = positions[static_cast<size_t>(row)];
    for (int64_t head = 0; head < columns; head += head_dim) {
      table_.rope(x.row<float>(row) + head, cos.row<float>(position), sin.row<float>(position), half);
    }
  });
}

void CpuBackend::swiglu(const Tensor& gate, const Tensor& up, Tensor& h) const {
  check_same("swiglu", gate, up);
  check_same("swiglu", gate, h);
  parallel_for(h.size(), kGrain / 4, [&](int64_t begin, int64_t end) {
    table_.swiglu(gate.data<float>() + begin, up.data<float>() + begin, end - begin, h.data<float>() + begin);
  });
}

void CpuBackend::add(const Tensor& x, Tensor& y) const {
  check_same("add", x, y);
  parallel_for(y.size(), kGrain * 2,
               [&](int64_t begin, int64_t end) { table_.add(x.data<float>() + begin, end - begin, y.data<float>() + begin); });
}

void CpuBackend::add_bias(const Tensor& bias, Tensor& y) const {
  check_matrix("add_bias", "y", y, -1, -1);
  CMOE_CHECK(bias.dtype() == DType::f32 && bias.shape() == Shape{y.dim(1)}, "add_bias: bias is {} {}, expected f32 [{}]",
             name_of(bias.dtype()), to_string(bias.shape()), y.dim(1));
  for_each_row(y.dim(0), y.dim(1), [&](int64_t row) { table_.add(bias.data<float>(), y.dim(1), y.row<float>(row)); });
}

void CpuBackend::gather_rows(const Tensor& x, std::span<const int32_t> rows, Tensor& out) const {
  check_matrix("gather_rows", "x", x, -1, -1);
  check_matrix("gather_rows", "out", out, static_cast<int64_t>(rows.size()), x.dim(1));
  for (int32_t row : rows) check_index("gather_rows", row, x.dim(0));
  for_each_row(out.dim(0), out.dim(1), [&](int64_t row) {
    std::memcpy(out.row<float>(row), x.row<float>(rows[static_cast<size_t>(row)]),
                static_cast<size_t>(x.dim(1)) * sizeof(float));
  });
}

}  // namespace cmoe::cpu

namespace cmoe {

const kernels::Table& kernels_of([[maybe_unused]] CpuIsa isa) {
#ifdef CMOE_X86
  if (isa >= CpuIsa::avx512) return kernels::table_avx512();
  if (isa >= CpuIsa::avx2) return kernels::table_avx2();
#endif
  return kernels::table_generic();
}

std::unique_ptr<Backend> make_cpu_backend(CpuIsa cap) {
  const CpuIsa isa = std::min(cap, cpu_isa());
  const kernels::Table& table = kernels_of(isa);
  const kernels::Gemm* gemm = nullptr;
  const kernels::Attention* attention = nullptr;
#ifdef CMOE_X86
  if (isa == CpuIsa::avx512_bf16) gemm = &kernels::gemm_avx512_bf16();
  if (isa >= CpuIsa::avx512_bf16) attention = &kernels::attention_avx512_bf16();
#endif
  return std::make_unique<cpu::CpuBackend>(isa, table, gemm ? *gemm : table.bf16, attention ? *attention : table.attention);
}

}  // namespace cmoe

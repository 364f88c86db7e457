// bf16 products through oneDNN, which has AMX kernels. On CPUs with AVX512-BF16 but no AMX our own are as fast (docs), so this
// serves AMX alone.
#include "backend/cpu/onednn.h"

#include <algorithm>
#include <cstring>
#include <dnnl.hpp>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "base/error.h"
#include "base/parallel.h"

extern "C" void omp_set_num_threads(int);

namespace cmoe::cpu {
namespace {

using dnnl::memory;
using Tag = memory::format_tag;
constexpr auto kBf16 = memory::data_type::bf16;
constexpr int64_t kHeights[] = {1, 4, 16, 64};
constexpr int64_t kTileRows = 64;

int64_t padded_height(int64_t rows) {
  for (int64_t height : kHeights) {
    if (rows <= height) return height;
  }
  fail_internal("oneDNN: a tile of {} rows, expected at most {}", rows, kTileRows);
}

// Features of a unit: even shares of at most 384, multiples of 64, so that threads have something to share.
int64_t unit_of(int64_t n) {
  const int64_t units = std::max<int64_t>(1, (n + 383) / 384);
  return std::max<int64_t>(64, ((n + units - 1) / units + 63) / 64 * 64);
}

const dnnl::engine& engine() {
  static const dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

// Our pool makes the threads: oneDNN must not start its own inside each of them, nor keep them spinning.
void be_single_threaded() {
  thread_local const bool done = (omp_set_num_threads(1), true);
  (void)done;
}

// The compiled product of [height, k] by [k, n]. The scratchpad is the caller's: the library's own belongs to the thread that
// made the primitive.
struct Matmul {
  memory::desc weights;
  dnnl::matmul primitive;
  int64_t scratchpad_bytes;
};

const Matmul& matmul(int64_t height, int64_t n, int64_t k) {
  static std::mutex mutex;
  static std::map<std::tuple<int64_t, int64_t, int64_t>, Matmul> made;
  const std::lock_guard lock(mutex);
  const auto key = std::tuple(height, n, k);
  if (const auto found = made.find(key); found != made.end()) return found->second;
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  // All heights share the layout that the full tile likes best.
  const auto full = made.find(std::tuple(kTileRows, n, k));
  const memory::desc weights = full != made.end() ? full->second.weights : memory::desc({k, n}, kBf16, Tag::any);
  const dnnl::matmul::primitive_desc desc(dnnl::matmul::desc(memory::desc({height, k}, kBf16, Tag::ab), weights,
                                                             memory::desc({height, n}, memory::data_type::f32, Tag::ab)),
                                          attributes, engine());
  return made
      .emplace(key, Matmul{desc.weights_desc(), dnnl::matmul(desc), static_cast<int64_t>(desc.scratchpad_desc().get_size())})
      .first->second;
}

class OneDnnWeight : public PackedWeight {
 public:
  explicit OneDnnWeight(const Tensor& weight) : PackedWeight(weight.dim(0), weight.dim(1), unit_of(weight.dim(0)), kTileRows) {
    const int64_t units = k() == 0 ? 0 : (n() + unit() - 1) / unit();
    units_.resize(static_cast<size_t>(units));
    parallel_for(units, 1, [&](int64_t begin, int64_t end) {
      be_single_threaded();
      for (int64_t u = begin; u < end; ++u) {
        const int64_t features = std::min(unit(), n() - u * unit());
        memory plain({{k(), features}, kBf16, Tag::ba}, engine(), weight.row<uint16_t>(u * unit()));
        memory packed(matmul(kTileRows, features, k()).weights, engine());
        dnnl::stream stream(engine());
        dnnl::reorder(plain, packed).execute(stream, plain, packed);
        stream.wait();
        units_[static_cast<size_t>(u)] = packed;
      }
    });
  }

  int64_t packed_bytes(int64_t rows) const override { return padded_height(rows) * k() * 2; }

  void pack(const float* x, int64_t rows, void* packed) const override {
    auto* to = static_cast<bf16*>(packed);
    kernels::table_generic().narrow_bf16(x, rows * k(), to);
    std::memset(to + rows * k(), 0, static_cast<size_t>((padded_height(rows) - rows) * k()) * sizeof(bf16));
  }

  void tile(const void* packed, int64_t rows, int64_t first, int64_t columns, float* y, int64_t ldy, bool add) const override {
    be_single_threaded();
    thread_local Scratch product_scratch, library_scratch;
    thread_local dnnl::stream stream(engine());
    const int64_t height = padded_height(rows);
    for (int64_t begin = 0; begin < columns; begin += unit()) {
      const int64_t u = first + begin / unit(), features = std::min(unit(), n() - u * unit());
      const Matmul& product = matmul(height, features, k());
      auto* result = reinterpret_cast<float*>(product_scratch.resize(height * features * 4));
      const memory from({{height, k()}, kBf16, Tag::ab}, engine(), const_cast<void*>(packed));
      const memory to({{height, features}, memory::data_type::f32, Tag::ab}, engine(), result);
      const memory scratchpad({{std::max<int64_t>(1, product.scratchpad_bytes)}, memory::data_type::u8, Tag::a}, engine(),
                              library_scratch.resize(std::max<int64_t>(64, product.scratchpad_bytes)));
      product.primitive.execute(stream, {{DNNL_ARG_SRC, from},
                                         {DNNL_ARG_WEIGHTS, units_[static_cast<size_t>(u)]},
                                         {DNNL_ARG_DST, to},
                                         {DNNL_ARG_SCRATCHPAD, scratchpad}});
      stream.wait();
      for (int64_t r = 0; r < rows; ++r) {
        float* out = y + r * ldy + begin;
        const float* line = result + r * features;
        for (int64_t c = 0; c < std::min(features, columns - begin); ++c) out[c] = add ? out[c] + line[c] : line[c];
      }
    }
  }

  void unpack(int64_t u, float* rows) const override {
    be_single_threaded();
    const int64_t features = std::min(unit(), n() - u * unit());
    thread_local Scratch scratch;
    memory plain({{k(), features}, kBf16, Tag::ba}, engine(), scratch.resize(features * k() * 2));
    memory packed = units_[static_cast<size_t>(u)];
    dnnl::stream stream(engine());
    dnnl::reorder(packed, plain).execute(stream, packed, plain);
    stream.wait();
    kernels::table_generic().widen_bf16(static_cast<const bf16*>(plain.get_data_handle()), features * k(), rows);
  }

 private:
  std::vector<memory> units_;
};

}  // namespace

bool onednn_has_amx() {
  const auto isa = dnnl::get_effective_cpu_isa();
  return isa == dnnl::cpu_isa::avx512_core_amx || isa == dnnl::cpu_isa::all;
}

bool onednn_has_bf16() {
  const auto isa = dnnl::get_effective_cpu_isa();
  return onednn_has_amx() || isa == dnnl::cpu_isa::avx512_core || isa == dnnl::cpu_isa::avx512_core_vnni ||
         isa == dnnl::cpu_isa::avx512_core_bf16;
}

std::string onednn_version() {
  const dnnl_version_t* version = dnnl_version();
  return fmt::format("{}.{}.{}", version->major, version->minor, version->patch);
}

std::shared_ptr<const PackedWeight> make_onednn_weight(const Tensor& weight) { return std::make_shared<OneDnnWeight>(weight); }

}  // namespace cmoe::cpu

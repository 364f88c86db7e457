// The CPU backend against what the machine can do (peaks.h, same run) and against oneDNN. Every result is checked before it
// is timed. Counters: GFLOP/s or GB/s of the best run, `of_peak` of the FMA, bf16-dot or read-bandwidth limit that binds,
// `vs_onednn` where the same product was timed there, in turns with ours.
//
//   bench_kernels [--benchmark_filter=linear/.*/threads:2]
#include <benchmark/benchmark.h>

#include <cmath>
#include <dnnl.hpp>
#include <map>
#include <random>

#include "bench/peaks.h"

extern "C" void omp_set_num_threads(int);

namespace {

using namespace cmoe;
using bench::best_seconds;
using bench::seconds;

const Backend& backend() {
  static const auto made = make_cpu_backend();
  return *made;
}

const bench::Peaks& peaks(int threads) {
  static std::map<int, bench::Peaks> measured;
  auto found = measured.find(threads);
  if (found == measured.end()) {
    found = measured.emplace(threads, bench::measure_peaks()).first;
    const auto& p = found->second;
    std::fprintf(stderr, "peaks of %d threads: f32 %.0f GFLOP/s, bf16 %.0f GFLOP/s, read %.1f GB/s\n", threads, p.f32_gflops,
                 p.bf16_gflops, p.read_gbs);
  }
  return found->second;
}

// GFLOP/s of products with weights of that type.
double product_peak(const bench::Peaks& limit, DType dtype) {
  return dtype == DType::bf16 && limit.bf16_gflops > 0 ? limit.bf16_gflops : limit.f32_gflops;
}

Tensor random(Shape shape, uint32_t seed = 1) {
  Tensor tensor(DType::f32, std::move(shape));
  std::minstd_rand engine(seed);
  for (float& x : tensor.span<float>()) x = static_cast<float>(static_cast<int>(engine() >> 8 & 0xff) - 128) / 128.0f;
  return tensor;
}

// oneDNN's matmul with weights in its own packed layout.
class OneDnn {
 public:
  OneDnn(int64_t m, int64_t n, int64_t k, dnnl::memory::data_type type, const Tensor& x, const Tensor& w, Tensor& y)
      : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
    using dnnl::memory;
    using Tag = memory::format_tag;
    const memory::desc any({k, n}, type, Tag::any), plain_x({m, k}, type, Tag::ab),
        plain_y({m, n}, memory::data_type::f32, Tag::ab);
    const dnnl::matmul::primitive_desc desc(dnnl::matmul::desc(plain_x, any, plain_y), engine_);
    memory from_x({{m, k}, memory::data_type::f32, Tag::ab}, engine_, x.raw()),
        from_w({{k, n}, memory::data_type::f32, Tag::ba}, engine_, w.raw());
    x_ = memory(plain_x, engine_);
    w_ = memory(desc.weights_desc(), engine_);
    y_ = memory(plain_y, engine_, y.raw());
    dnnl::reorder(from_x, x_).execute(stream_, from_x, x_);
    dnnl::reorder(from_w, w_).execute(stream_, from_w, w_);
    stream_.wait();
    matmul_ = dnnl::matmul(desc);
  }
  void run() {
    matmul_.execute(stream_, {{DNNL_ARG_SRC, x_}, {DNNL_ARG_WEIGHTS, w_}, {DNNL_ARG_DST, y_}});
    stream_.wait();
  }

 private:
  dnnl::engine engine_;
  dnnl::stream stream_;
  dnnl::memory x_, w_, y_;
  dnnl::matmul matmul_;
};

// Times ours and, when given, theirs in turns; returns the best of each.
std::pair<double, double> in_turns(benchmark::State& state, const std::function<void()>& ours,
                                   const std::function<void()>& theirs) {
  double best_ours = 1e30, best_theirs = 1e30;
  for (auto _ : state) {
    const double time = seconds(ours);
    state.SetIterationTime(time);
    best_ours = std::min(best_ours, time);
    if (theirs) best_theirs = std::min(best_theirs, seconds(theirs));
  }
  return {best_ours, best_theirs};
}

void check(benchmark::State& state, const Tensor& y, const Tensor& x, const Tensor& w, double tolerance) {
  const int64_t k = x.dim(1);
  for (int64_t i = 0; i < y.dim(0); i += 37) {
    for (int64_t j = 0; j < y.dim(1); j += 101) {
      double sum = 0;
      for (int64_t l = 0; l < k; ++l) sum += static_cast<double>(x.row<float>(i)[l]) * static_cast<double>(w.row<float>(j)[l]);
      if (!(std::abs(sum - static_cast<double>(y.row<float>(i)[j])) <= tolerance)) state.SkipWithError("wrong result");
    }
  }
}

void linear(benchmark::State& state, DType dtype) {
  const int64_t m = state.range(0), n = state.range(1), k = state.range(2);
  const int threads = static_cast<int>(state.range(3));
  set_num_threads(threads);
  omp_set_num_threads(threads);
  const Tensor x = random({m, k}), w = random({n, k}, 2);
  // One row reads its weights from memory in real life: rotate copies that exceed the caches together.
  const int64_t bytes = n * k * size_of(dtype);
  const int copies = m <= 16 ? static_cast<int>(std::max<int64_t>(1, (int64_t{160} << 20) / bytes)) : 1;
  std::vector<Weight> weights;
  Tensor y(DType::f32, {m, n}), y_theirs(DType::f32, {m, n});
  const auto type = dtype == DType::bf16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
  std::vector<OneDnn> theirs;
  for (int i = 0; i < copies; ++i) {
    weights.push_back(backend().prepare(w, dtype));
    if (dtype == DType::f32 || cpu_isa() >= CpuIsa::avx512) theirs.emplace_back(m, n, k, type, x, w, y_theirs);
  }
  backend().linear(x, weights[0], y);
  check(state, y, x, w, 1e-3);  // values of 8 bits: bf16 keeps them too
  const auto [ours, other] = in_turns(
      state,
      [&] {
        for (const Weight& weight : weights) backend().linear(x, weight, y);
      },
      theirs.empty() ? std::function<void()>() : [&] {
        for (OneDnn& one : theirs) one.run();
      });
  const double flop = 2.0 * static_cast<double>(m * n * k), time = ours / copies;
  const bench::Peaks& limit = peaks(threads);
  const double gflops = flop / time * 1e-9, gbs = static_cast<double>(bytes) / time * 1e-9;
  state.counters["GFLOP/s"] = gflops;
  const double compute = product_peak(limit, dtype);
  if (m <= 16) {
    state.counters["GB/s"] = gbs;
    state.counters["of_read"] = gbs / limit.read_gbs;
  } else if (compute > 0) {
    state.counters["of_peak"] = gflops / compute;
  }
  if (!theirs.empty()) state.counters["vs_onednn"] = other / ours;
  set_num_threads(1);
}

void gram(benchmark::State& state) {
  const int64_t t = 512, n = state.range(0);
  const int threads = static_cast<int>(state.range(1));
  set_num_threads(threads);
  const Tensor a = random({t, n});
  Tensor c(DType::f32, {n, n});
  backend().multiply_transposed(a, a, c);
  for (int64_t i = 0; i < n; i += 97) {
    double sum = 0;
    for (int64_t l = 0; l < t; ++l) sum += std::pow(static_cast<double>(a.row<float>(l)[i]), 2);
    if (std::abs(sum - static_cast<double>(c.row<float>(i)[i])) > 1e-3) state.SkipWithError("wrong result");
  }
  const double time = in_turns(state, [&] { backend().multiply_transposed(a, a, c, true); }, {}).first;
  const double gflops = 2.0 * static_cast<double>(n * n * t) / time * 1e-9;
  state.counters["GFLOP/s"] = gflops;
  state.counters["of_peak"] = gflops / peaks(threads).f32_gflops;
  set_num_threads(1);
}

// One layer's attention of a model with 9 query heads, 3 key-value heads of 64.
void attention(benchmark::State& state, DType dtype) {
  const int64_t rows = state.range(0), past = state.range(1), heads = 9, kv_heads = 3, d = 64;
  const int threads = static_cast<int>(state.range(2));
  set_num_threads(threads);
  const Tensor q = random({rows, heads * d}), k = random({rows, kv_heads * d}), v = random({rows, kv_heads * d});
  // Copies of the cache stand for the layers: decoding streams each from memory.
  const int64_t capacity = past + rows, copies = rows == 1 ? 30 : 1;
  Tensor key = Tensor::zeros(DType::f32, {copies, kv_heads, capacity, d}),
         value = Tensor::zeros(DType::f32, {copies, kv_heads, capacity, d});
  Tensor out(DType::f32, {rows, heads * d});
  const auto run = [&] {
    for (int64_t i = 0; i < copies; ++i) {
      const AttentionSpan span{0, rows, past, key.row<float>(i), value.row<float>(i), capacity};
      backend().attention(q, k, v, {&span, 1}, d, dtype, out);
    }
  };
  run();
  if (!std::isfinite(out.data<float>()[0])) state.SkipWithError("wrong result");
  const double time = in_turns(state, run, {}).first / static_cast<double>(copies);
  double pairs = 0;
  for (int64_t i = 0; i < rows; ++i) pairs += static_cast<double>(past + i + 1);
  state.counters["GFLOP/s"] = pairs * heads * 4 * d / time * 1e-9;
  if (rows == 1) {
    const double gbs = static_cast<double>(2 * kv_heads * capacity * d) * 4 / time * 1e-9;
    state.counters["GB/s"] = gbs;
    state.counters["of_read"] = gbs / peaks(threads).read_gbs;
  } else {
    state.counters["of_peak"] = pairs * heads * 4 * d / time * 1e-9 / product_peak(peaks(threads), dtype);
  }
  set_num_threads(1);
}

void cross_entropy(benchmark::State& state) {
  const int64_t rows = 2048, vocab = 49152, d = 576;
  const int threads = static_cast<int>(state.range(0));
  set_num_threads(threads);
  const Tensor x = random({rows, d});
  const Weight head = backend().prepare(random({vocab, d}), DType::f32);
  const std::vector<int32_t> targets(rows, 17);
  std::vector<double> nll(rows);
  const double time = in_turns(state, [&] { backend().cross_entropy(x, head, targets, nll); }, {}).first;
  const double gflops = 2.0 * static_cast<double>(rows * vocab * d) / time * 1e-9;
  state.counters["GFLOP/s"] = gflops;
  state.counters["of_peak"] = gflops / peaks(threads).f32_gflops;
  set_num_threads(1);
}

void elementwise(benchmark::State& state, bool norm) {
  const int64_t rows = state.range(0), columns = norm ? 576 : 1536;
  const int threads = static_cast<int>(state.range(1));
  set_num_threads(threads);
  const Tensor x = random({rows, columns}), other = random({rows, columns}), weight = random({columns});
  Tensor y(DType::f32, {rows, columns});
  const double time =
      in_turns(state, [&] { norm ? backend().rms_norm(x, weight, 1e-5f, y) : backend().swiglu(x, other, y); }, {}).first;
  state.counters["Gelement/s"] = static_cast<double>(rows * columns) / time * 1e-9;
  set_num_threads(1);
}

void linear_sizes(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"m", "n", "k", "threads"})->UseManualTime()->MinTime(0.3)->Unit(benchmark::kMicrosecond);
  for (int64_t threads : {1, 2}) {
    for (int64_t m : {1, 4, 16, 64, 256, 2048}) {
      for (auto [n, k] : {std::pair<int64_t, int64_t>{1536, 576}, {576, 1536}, {4096, 4096}, {1376, 4096}}) {
        benchmark->Args({m, n, k, threads});
      }
    }
  }
}

BENCHMARK_CAPTURE(linear, f32, DType::f32)->Apply(linear_sizes);
BENCHMARK_CAPTURE(linear, bf16, DType::bf16)->Apply(linear_sizes);
BENCHMARK(gram)
    ->ArgNames({"n", "threads"})
    ->ArgsProduct({{1536}, {1, 2}})
    ->UseManualTime()
    ->MinTime(0.3)
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(attention, f32, DType::f32)
    ->ArgNames({"rows", "past", "threads"})
    ->ArgsProduct({{2048, 512}, {0}, {1, 2}})
    ->ArgsProduct({{1}, {511, 2047}, {1, 2}})
    ->UseManualTime()
    ->MinTime(0.3)
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(attention, bf16, DType::bf16)
    ->ArgNames({"rows", "past", "threads"})
    ->ArgsProduct({{2048, 512}, {0}, {1, 2}})
    ->ArgsProduct({{1}, {511, 2047}, {1, 2}})
    ->UseManualTime()
    ->MinTime(0.3)
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(cross_entropy)->ArgNames({"threads"})->Arg(1)->Arg(2)->UseManualTime()->MinTime(0.3)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(elementwise, rms_norm, true)
    ->ArgNames({"rows", "threads"})
    ->ArgsProduct({{1, 2048}, {1, 2}})
    ->UseManualTime()
    ->MinTime(0.1);
BENCHMARK_CAPTURE(elementwise, swiglu, false)
    ->ArgNames({"rows", "threads"})
    ->ArgsProduct({{1, 2048}, {1, 2}})
    ->UseManualTime()
    ->MinTime(0.1);

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  std::fprintf(stderr, "%s\n", cpu_description().c_str());
  benchmark::RunSpecifiedBenchmarks();
}

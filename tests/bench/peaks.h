#pragma once

#include <sys/mman.h>
#include <time.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "backend/cpu_info.h"
#include "base/parallel.h"

// What this machine can do at most, measured in the run whose kernels are compared with it.
namespace cmoe::bench {

/// Of one thread its CPU time, so that a busy machine counts less; of several the time that passed.
inline double now() {
  timespec time;
  clock_gettime(num_threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

inline double seconds(const std::function<void()>& body) {
  const double start = now();
  body();
  return now() - start;
}

/// Best of `runs`: other programs on the machine only ever add time.
inline double best_seconds(int runs, const std::function<void()>& body) {
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < runs; ++i) best = std::min(best, seconds(body));
  return best;
}

inline volatile float sink;

#ifdef __x86_64__
// 24 independent sums hide any latency; nothing is loaded. FLOP of one call: steps * 24 * lanes * 2.
__attribute__((target("avx512f"))) inline void fma_loop_512(int64_t steps) {
  __m512 sums[24];
#pragma GCC unroll 24
  for (int j = 0; j < 24; ++j) sums[j] = _mm512_setzero_ps();
  const __m512 a = _mm512_set1_ps(1.0001f), b = _mm512_set1_ps(0.9999f);
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 24
    for (int j = 0; j < 24; ++j) sums[j] = _mm512_fmadd_ps(a, b, sums[j]);
#pragma GCC unroll 24
    for (int j = 0; j < 24; ++j) __asm__ volatile("" : "+v"(sums[j]));
  }
#pragma GCC unroll 24
  for (int j = 0; j < 24; ++j) sink = _mm512_cvtss_f32(sums[j]);
}

__attribute__((target("avx512f,avx512bf16"))) inline void dot_loop_512(int64_t steps) {
  __m512 sums[24];
#pragma GCC unroll 24
  for (int j = 0; j < 24; ++j) sums[j] = _mm512_setzero_ps();
  const auto a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3f803f80));
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 24
    for (int j = 0; j < 24; ++j) sums[j] = _mm512_dpbf16_ps(sums[j], a, a);
#pragma GCC unroll 24
    for (int j = 0; j < 24; ++j) __asm__ volatile("" : "+v"(sums[j]));
  }
#pragma GCC unroll 24
  for (int j = 0; j < 24; ++j) sink = _mm512_cvtss_f32(sums[j]);
}

__attribute__((target("avx2,fma"))) inline void fma_loop_256(int64_t steps) {
  __m256 sums[12];
#pragma GCC unroll 12
  for (int j = 0; j < 12; ++j) sums[j] = _mm256_setzero_ps();
  const __m256 a = _mm256_set1_ps(1.0001f), b = _mm256_set1_ps(0.9999f);
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) sums[j] = _mm256_fmadd_ps(a, b, sums[j]);
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) __asm__ volatile("" : "+x"(sums[j]));
  }
#pragma GCC unroll 12
  for (int j = 0; j < 12; ++j) sink = _mm256_cvtss_f32(sums[j]);
}
#endif

struct Peaks {
  double f32_gflops = 0, bf16_gflops = 0;  ///< of all threads; bf16 is 0 where the CPU has no bf16 products
  double read_gbs = 0;                     ///< from memory, far beyond the caches
};

inline double loop_gflops(double flop, const std::function<void()>& loop) {
  const int threads = num_threads();
  const double time = best_seconds(15, [&] {
    parallel_for(threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) loop();
    });
  });
  return flop * threads / time * 1e-9;
}

/// Of the current number of threads.
inline Peaks measure_peaks() {
  Peaks peaks;
  [[maybe_unused]] constexpr int64_t steps = 1 << 18;
#ifdef __x86_64__
  if (cpu_isa() >= CpuIsa::avx512) {
    peaks.f32_gflops = loop_gflops(steps * 24 * 32.0, [] { fma_loop_512(steps); });
  } else if (cpu_isa() >= CpuIsa::avx2) {
    peaks.f32_gflops = loop_gflops(steps * 12 * 16.0, [] { fma_loop_256(steps); });
  }
  if (cpu_isa() >= CpuIsa::avx512_bf16) peaks.bf16_gflops = loop_gflops(steps * 24 * 64.0, [] { dot_loop_512(steps); });
#endif
  const int64_t bytes = int64_t{512} << 20, piece = 1 << 20;
  const auto pages = size_t{2} << 20;  // large ones, as packed weights have
  const std::unique_ptr<void, void (*)(void*)> memory(std::aligned_alloc(pages, static_cast<size_t>(bytes)), std::free);
  madvise(memory.get(), static_cast<size_t>(bytes), MADV_HUGEPAGE);
  std::memset(memory.get(), 1, static_cast<size_t>(bytes));
  const double time = best_seconds(8, [&] {
    parallel_for(bytes, piece, [&](int64_t begin, int64_t end) {
      const auto* p = reinterpret_cast<const uint64_t*>(static_cast<const uint8_t*>(memory.get()) + begin);
      uint64_t sums[8] = {};
      for (int64_t i = 0; i < (end - begin) / 8; i += 8) {
        for (int j = 0; j < 8; ++j) sums[j] += p[i + j];
      }
      for (uint64_t sum : sums) sink = static_cast<float>(sum);
    });
  });
  peaks.read_gbs = static_cast<double>(bytes) / time * 1e-9;
  return peaks;
}

}  // namespace cmoe::bench

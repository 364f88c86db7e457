#include "backend/cpu_info.h"

#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <thread>
#include <vector>

#include "backend/cpu/onednn.h"
#include "base/error.h"

namespace cmoe {
namespace {

constexpr CpuIsa kAll[] = {CpuIsa::generic, CpuIsa::avx2, CpuIsa::avx512, CpuIsa::avx512_bf16, CpuIsa::amx};

CpuIsa detect() {
#ifdef CMOE_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && cpu::onednn_has_amx()) return CpuIsa::amx;
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return CpuIsa::avx512_bf16;
  if (avx512) return CpuIsa::avx512;
  if (avx2) return CpuIsa::avx2;
#endif
  return CpuIsa::generic;
}

// A line "name<tabs>: value" of /proc/cpuinfo; empty when there is none.
std::string cpuinfo(const std::string& name) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (line.compare(0, name.size(), name) == 0 && colon != std::string::npos) {
      return line.substr(std::min(colon + 2, line.size()));
    }
  }
  return "";
}

bool has_flag(const std::string& flags, const std::string& flag) {
  return (" " + flags + " ").find(" " + flag + " ") != std::string::npos;
}

// CPUs this process may run on. A set of fixed size fails with EINVAL on machines with more CPUs than it holds.
int allowed_cpus() {
  for (int cpus = 1024; cpus <= 1 << 20; cpus *= 4) {
    cpu_set_t* set = CPU_ALLOC(static_cast<size_t>(cpus));
    const size_t bytes = CPU_ALLOC_SIZE(static_cast<size_t>(cpus));
    const int count = sched_getaffinity(0, bytes, set) == 0 ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (count > 0) return count;
  }
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// The positive number that an environment variable begins with ("4,2" gives 4), else 0.
int positive(const char* variable) {
  const char* text = std::getenv(variable);
  return text ? static_cast<int>(std::clamp(std::strtol(text, nullptr, 10), 0L, 1L << 20)) : 0;
}

}  // namespace

const char* name_of(CpuIsa isa) {
  constexpr const char* names[] = {"generic", "avx2", "avx512", "avx512_bf16", "amx"};
  return names[static_cast<int>(isa)];
}

const char* bf16_products(CpuIsa isa) {
  return isa == CpuIsa::amx ? "by AMX (oneDNN)" : isa == CpuIsa::avx512_bf16 ? "by vdpbf16ps" : "widened to f32";
}

CpuIsa cpu_isa() {
  static const CpuIsa best = detect();
  const char* cap = std::getenv("CMOE_CPU_ISA");
  if (!cap || !*cap) return best;
  for (CpuIsa isa : kAll) {
    if (std::string(cap) == name_of(isa)) return std::min(isa, best);
  }
  fail("CMOE_CPU_ISA: '{}', expected generic, avx2, avx512, avx512_bf16 or amx; unset it for the best one", cap);
}

std::string cpu_description() {
  const std::string flags = cpuinfo("flags");
  std::vector<std::string> features;
  for (const char* flag : {"avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16"}) {
    if (has_flag(flags, flag)) features.emplace_back(flag);
  }
  const std::string model = cpuinfo("model name");
  const CpuIsa isa = cpu_isa();
  std::string text = fmt::format("{}, {} CPUs allowed; {}\n", model.empty() ? "unknown CPU" : model, allowed_cpus(),
                                 features.empty() ? "none of avx2, avx512, bf16" : fmt::format("{}", fmt::join(features, " ")));
  text += fmt::format("f32 kernels: {}\n", name_of(std::min(isa, CpuIsa::avx512)));
  text += fmt::format("bf16 products: {}\n", bf16_products(isa));
  const char* reason = isa == CpuIsa::amx            ? "makes the bf16 products"
                       : has_flag(flags, "amx_bf16") ? "not used: CMOE_CPU_ISA, ONEDNN_MAX_CPU_ISA or the kernel forbids AMX"
                       : isa == CpuIsa::avx512_bf16
                           ? "not used: without AMX our own bf16 products are as fast, and repeat to the bit"
                           : "not used: no AMX";
  text += fmt::format("oneDNN {}: {}", cpu::onednn_version(), reason);
  return text;
}

int default_threads(int ranks_on_node) {
  const int allowed = allowed_cpus();
  for (const char* variable : {"OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"}) {
    if (const int wanted = positive(variable); wanted > 0) return std::min(wanted, allowed);
  }
  return std::max(1, allowed / std::max(1, ranks_on_node));
}

}  // namespace cmoe

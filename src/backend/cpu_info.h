#pragma once

#include <string>

#include "backend/backend.h"

namespace cmoe {

/// The best instruction set that this CPU and its operating system offer, lowered by CMOE_CPU_ISA when that is set.
/// @throws Error when CMOE_CPU_ISA names none.
CpuIsa cpu_isa();

/// "generic", "avx2", "avx512", "avx512_bf16" or "amx".
const char* name_of(CpuIsa isa);

/// How products with bf16 weights are made: "by AMX (oneDNN)", "by vdpbf16ps" or "widened to f32".
const char* bf16_products(CpuIsa isa);

/// Several lines for `cmoe doctor`: model, features, and which kernels run, or why not better ones.
std::string cpu_description();

/// Threads for each of `ranks_on_node` processes: OMP_NUM_THREADS, or SLURM_CPUS_PER_TASK, or this process's share of the
/// CPUs it may run on. At least 1, and never more than it may run on.
int default_threads(int ranks_on_node);

}  // namespace cmoe

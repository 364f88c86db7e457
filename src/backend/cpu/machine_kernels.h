#pragma once

#include "backend/cpu_info.h"
#include "kernels/cpu/table.h"

namespace cmoe {

/// The kernels of an instruction set; of this machine's best one. For host memory outside the backend's contract, markers say.
const kernels::Table& kernels_of(CpuIsa isa);
const kernels::Table& machine_kernels();

}  // namespace cmoe

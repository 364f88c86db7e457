#pragma once

#include "backend/cpu_info.h"
#include "kernels/cpu/table.h"

namespace cmoe {

/// The kernels compiled for an instruction set.
const kernels::Table& kernels_of(CpuIsa isa);

}  // namespace cmoe

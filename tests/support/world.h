#pragma once

#include "comm/communicator.h"

namespace cmoe {

/// All ranks of this test program.
Communicator& test_world();

}  // namespace cmoe

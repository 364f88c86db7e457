#pragma once

#include <memory>

#include "comm/communicator.h"

namespace cmoe {

/// A group of this process alone, without a message layer: every collective copies what it is given. For models that run on one
/// rank whatever the world is, by the same code as on many.
std::unique_ptr<Communicator> make_solo_communicator();

}  // namespace cmoe

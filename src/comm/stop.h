#pragma once

#include <string_view>

namespace cmoe {

class Communicator;

/// Ends the work on all ranks when SIGTERM or SIGUSR1 reached any of them: throws an Error with exit code 75, on every rank at
/// the same step. Collective.
void stop_together(Communicator& comm, std::string_view stage);

}  // namespace cmoe

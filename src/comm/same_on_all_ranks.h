#pragma once

#include <string>
#include <string_view>

namespace cmoe {

class Communicator;

/// All ranks must hold the same value, or the job would hang or compute nonsense later. Collective; every rank throws the same
/// Error (exit code 2), which names the lowest rank that differs from rank 0, its host, and both values: whole when they are
/// one line, the first differing lines otherwise.
/// @param what  completes "rank 3 on host b has another ...": "build of cmoe".
void check_same_on_all_ranks(Communicator& comm, std::string_view what, const std::string& value);

}  // namespace cmoe

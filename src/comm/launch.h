#pragma once

#include <functional>
#include <optional>
#include <string>

namespace cmoe {

/// Reads one variable of the environment; null when it is not set (std::getenv, or a table in tests).
using EnvironmentLookup = std::function<const char*(const char* name)>;

/// Why this process cannot be one rank of the job that its launcher meant to start, with the fix; nothing when all is well.
/// A launcher without a common PMIx starts N programs that each believe to be rank 0 of 1: every one of them would do the
/// whole job and write the same files.
///
/// @param world_size  ranks that MPI sees; 0 before MPI was asked (some of these launches end inside MPI_Init).
std::optional<std::string> find_launch_problem(int world_size, const EnvironmentLookup& lookup);

/// True when no launcher is in sight, so that the program is alone on purpose.
bool started_alone(const EnvironmentLookup& lookup);

}  // namespace cmoe

#pragma once

#include <filesystem>
#include <string>

namespace cmoe {

/// Sends what this process still writes to a file to memory, through whatever descriptor: HDF5 and MPI-IO hold their own. For a
/// file that is given up: on a full disk it could not be closed, and HDF5 crashes at the end of a program that leaves it open.
void redirect_into_memory(const std::filesystem::path& file);

/// "" or "; the disk has 0 B left": the words that HDF5's and MPI-IO's own lack when a write fails.
std::string full_disk_hint(const std::filesystem::path& file);

}  // namespace cmoe

#include "comm/launch.h"

#include <fmt/format.h>

#include <cstdlib>

namespace cmoe {
namespace {

// The number in a variable, 0 when it is unset or not a number.
long long number(const EnvironmentLookup& lookup, const char* name) {
  const char* text = lookup(name);
  return text ? std::atoll(text) : 0;
}

}  // namespace

std::optional<std::string> find_launch_problem(int world_size, const EnvironmentLookup& lookup) {
  if (world_size > 1) return std::nullopt;
  // Before MPI_Init, a PMIx rank or Open MPI's own variables mean that the launcher and MPI speak the same language.
  const bool asked = world_size == 1;
  if (!asked && (lookup("PMIX_RANK") || lookup("OMPI_COMM_WORLD_SIZE"))) return std::nullopt;

  // mpirun is the innermost launcher when its variable is there: inside a Slurm step its word counts, not the step's.
  if (lookup("OMPI_COMM_WORLD_SIZE")) {
    const long long ranks = number(lookup, "OMPI_COMM_WORLD_SIZE");
    if (ranks <= 1) return std::nullopt;
    return fmt::format(
        "launch: mpirun started {} copies, but each sees a world of 1; expected one world of {}; use the mpirun of the Open "
        "MPI "
        "this program is linked with",
        ranks, ranks);
  }
  // SLURM_STEP_NUM_TASKS is set by srun for the tasks of a step. SLURM_NTASKS is no evidence: the shell of an sbatch script has
  // it too, and a program started there without srun is alone on purpose.
  if (const long long tasks = number(lookup, "SLURM_STEP_NUM_TASKS"); tasks > 1) {
    return fmt::format(
        "launch: srun started {} copies, but each sees a world of 1; expected one world of {}; start with `srun --mpi=pmix "
        "cmoe ...` "
        "(`srun --mpi=list` shows what this Slurm offers), or with `mpirun cmoe ...` inside the allocation",
        tasks, tasks);
  }
  // PMI_SIZE comes from the mpiexec of another MPI (MPICH, Intel MPI) or from srun --mpi=pmi2.
  if (const long long ranks = number(lookup, "PMI_SIZE"); ranks > 1) {
    return fmt::format(
        "launch: a PMI launcher of another MPI started {} copies, but each sees a world of 1; expected one world of {}; start "
        "with "
        "Open MPI's `mpirun -n {} cmoe ...` or `srun --mpi=pmix cmoe ...`",
        ranks, ranks, ranks);
  }
  return std::nullopt;
}

bool started_alone(const EnvironmentLookup& lookup) {
  for (const char* name : {"PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "PMI_SIZE"}) {
    if (lookup(name)) return false;
  }
  return true;
}

}  // namespace cmoe

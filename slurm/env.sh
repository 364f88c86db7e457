# Site settings, sourced before sbatch and again inside the job:
#
#   source slurm/env.sh && sbatch slurm/carve.sbatch MODEL CALIBRATION HELD_OUT OUT
#
# Change this file for your cluster; the jobs need no change.
# shellcheck shell=bash

# Modules of the site, for example:
# module load gcc/12 openmpi/4.1 hdf5/1.10-mpi

# sbatch reads these; leave them unset where the cluster has defaults.
# export SBATCH_ACCOUNT=my-account
# export SBATCH_PARTITION=cpu

# How srun starts MPI ranks. Without PMIx every rank would believe that it is alone: cmoe notices and says so.
# `srun --mpi=list` shows what the site offers.
export SLURM_MPI_TYPE=${SLURM_MPI_TYPE:-pmix}

# Ranks have threads of their own; Open MPI must not bind them to one core.
export OMPI_MCA_hwloc_base_binding_policy=none

# The program; jobs are submitted from the top of the repository.
export cmoe_program=${cmoe_program:-${SLURM_SUBMIT_DIR:-$PWD}/build/release/cmoe}

#!/bin/bash
# Carves a real model on 1, 2, 3 and 4 ranks and compares all files of the folders, bit for bit.
#
#   bash tests/large/run.sh MODEL TEXT [SAMPLES SEQ_LEN [RECIPE ...]]     default 8 x 2048 tokens; best, authors
#   bash tests/large/run.sh build/demo/SmolLM2-135M-Instruct.Q4_1.gguf build/demo/debian-reference.txt 2 256
#
# Needs build/release/cmoe (bash tests/run.sh). Works in build/large; ends with 1 when anything differs.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ $# -ge 2 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }

cmoe=$PWD/build/release/cmoe
model=$(realpath "$1") text=$(realpath "$2") samples=${3:-8} seq_len=${4:-2048}
shift $(($# < 4 ? $# : 4))
[ $# -gt 0 ] || set -- best authors
[ -x "$cmoe" ] || { echo "tests/large: build/release/cmoe is missing; run bash tests/run.sh first" >&2; exit 2; }
work=$PWD/build/large
rm -rf "$work"
mkdir -p "$work"
cd "$work"

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader,tcp OMPI_MCA_btl_tcp_if_include=lo OMPI_MCA_oob_tcp_if_include=lo
export OMPI_MCA_btl_vader_single_copy_mechanism=none

# The sums of all files of folder $1.
sums() {
  (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum)
}

mpirun -n 2 "$cmoe" profile --model "$model" --dataset "$text" --samples "$samples" --seq-len "$seq_len" --seed 0 --quiet \
  --out profile.h5
status=0
for recipe in "$@"; do
  for ranks in 1 2 3 4; do
    start=$SECONDS
    # The same name each time: it is kept in the folder.
    mpirun -n "$ranks" "$cmoe" carve --model "$model" --profile profile.h5 --experts S3A3E8 --recipe "$recipe" --quiet --out carved
    seconds=$((SECONDS - start))
    sums carved >"$recipe.$ranks"
    rm -r carved
    if diff "$recipe.1" "$recipe.$ranks" >"$recipe.$ranks.diff"; then
      echo "$recipe on $ranks rank(s): $(wc -l <"$recipe.$ranks") files, equal, $seconds s"
    else
      echo "$recipe on $ranks rank(s): DIFFERS" >&2
      cat "$recipe.$ranks.diff" >&2
      status=1
    fi
  done
done
exit $status

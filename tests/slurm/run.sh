#!/bin/bash
# Runs slurm/carve.sbatch on a real Slurm of two nodes on this machine, with the tiny model of the tests.
#
#   bash tests/slurm/run.sh      after bash tests/run.sh (needs build/release/cmoe); about half a minute
#
# Skips, and says so, without root or without the packages slurm-wlm, munge and iproute2. Not part of ctest.
set -euo pipefail
cd "$(dirname "$0")/../.."

skip() { echo "tests/slurm: skipped: $*"; exit 0; }
[ "$(id -u)" -eq 0 ] || skip "needs root"
for tool in slurmctld slurmd munged ip nsenter; do
  command -v "$tool" >/dev/null || skip "$tool is missing (packages slurm-wlm, munge, iproute2, util-linux)"
done
[ -x build/release/cmoe ] || { echo "tests/slurm: build/release/cmoe is missing; run bash tests/run.sh first" >&2; exit 2; }

work=$PWD/build/slurm-test
fixtures=$PWD/tests/model/fixtures
cluster=tests/slurm/cluster.sh
bash "$cluster" down "$work/cluster"
rm -rf "$work"
mkdir -p "$work"
trap 'bash "$cluster" down "$work/cluster"' EXIT

fail() {
  echo "tests/slurm: $*" >&2
  tail -n 40 "$work"/*.out >&2 || true
  exit 1
}
slurm() { bash "$cluster" run "$work/cluster" "$@"; }

# wait_job ID [SECONDS]: waits until the job has ended; prints its state and exit code.
wait_job() {
  local state
  for _ in $(seq $((${2:-120} * 5))); do
    state=$(slurm squeue -h -j "$1" -o '%T %r' 2>/dev/null || true)
    case $state in
      "" | COMPLETED* | FAILED* | CANCELLED* | TIMEOUT* | NODE_FAIL*) break ;;
      # A requeued job waits two minutes by default; a test does not, except for the second in which Slurm still
      # refuses the credential of the job's first life.
      "PENDING BeginTime")
        sleep 2
        slurm scontrol update JobId="$1" StartTime=now
        ;;
    esac
    sleep 0.2
  done
  slurm scontrol -o show job "$1" | grep -oE 'JobState=[A-Z_]+|ExitCode=[0-9]+' | cut -d= -f2 | paste -sd ' '
}

# submit NAME ARGUMENT...: slurm/carve.sbatch on two nodes with two ranks each.
submit() {
  slurm sbatch --parsable --job-name="$1" --nodes=2 --ntasks-per-node=2 --time=5 --output="$work/%x-%j.out" \
    slurm/carve.sbatch "${@:2}"
}

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader,tcp
export OMPI_MCA_btl_tcp_if_include=eth0 OMPI_MCA_oob_tcp_if_include=eth0 OMPI_MCA_mpi_yield_when_idle=1
export samples=8 seq_len=128 windows=8
bash "$cluster" up "$work/cluster" 2

echo "== profile, carve and evaluate on 2 nodes x 2 ranks"
model=$fixtures/tiny-llama
id=$(submit carve "$model" "$fixtures/text/train.txt" "$fixtures/text/valid.txt" "$work/out")
state=$(wait_job "$id")
[ "$state" = "COMPLETED 0" ] || fail "the job ended as '$state', expected COMPLETED 0"
for file in profile.h5 carved/config.json carved/model.safetensors perplexity.json; do
  [ -s "$work/out/$file" ] || fail "the job left no $file"
done

echo "== the same job again: every stage is complete"
id=$(submit again "$model" "$fixtures/text/train.txt" "$fixtures/text/valid.txt" "$work/out")
state=$(wait_job "$id")
[ "$state" = "COMPLETED 0" ] || fail "the second job ended as '$state', expected COMPLETED 0"
[ "$(grep -c 'is complete; skipped' "$work/again-$id.out")" -eq 3 ] || fail "the second job repeated work"

echo "== one rank or four, the same carved files"
export OMPI_MCA_btl_tcp_if_include=lo OMPI_MCA_oob_tcp_if_include=lo
build/release/cmoe profile --model "$model" --dataset "$fixtures/text/train.txt" --samples 8 --seq-len 128 --seed 0 \
  --out "$work/one.h5" --quiet
build/release/cmoe carve --model "$model" --profile "$work/one.h5" --experts S3A3E8 --recipe best --out "$work/one" --quiet
cmp "$work/one/model.safetensors" "$work/out/carved/model.safetensors" || fail "the carved tensors depend on the ranks"
export OMPI_MCA_btl_tcp_if_include=eth0 OMPI_MCA_oob_tcp_if_include=eth0

echo "== exit 75 puts the job back into the queue, and it goes on where it stopped"
cat >"$work/interrupted" <<'PROGRAM'
#!/bin/bash
# Stands in for cmoe: its carve is stopped by the time limit in the job's first life, and every stage writes its output.
out="" stage=$1
while [ $# -gt 0 ]; do
  case $1 in --out | --json) out=$2 ;; esac
  shift
done
[ "$stage" = carve ] && [ "${SLURM_RESTART_COUNT:-0}" -eq 0 ] && exit 75
echo "$stage life ${SLURM_RESTART_COUNT:-0}"
touch "$out"
PROGRAM
chmod +x "$work/interrupted"
id=$(cmoe_program=$work/interrupted submit requeue "$model" a.txt b.txt "$work/requeued")
state=$(wait_job "$id")
[ "$state" = "COMPLETED 0" ] || fail "the requeued job ended as '$state', expected COMPLETED 0"
grep -q '^profile life 0$' "$work/requeue-$id.out" || fail "the first life did not profile"
if grep -q '^profile life 1$' "$work/requeue-$id.out"; then fail "the second life profiled again"; fi
grep -q '^evaluate life 1$' "$work/requeue-$id.out" || fail "the second life did not finish"

echo "== other failures end the job with their code"
id=$(submit refused "$work/no-such-model" a.txt b.txt "$work/refused")
state=$(wait_job "$id")
[ "$state" = "FAILED 2" ] || fail "a missing model ended the job as '$state', expected FAILED 2"
echo "tests/slurm: passed"

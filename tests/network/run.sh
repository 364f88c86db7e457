#!/bin/bash
# Two "nodes" with TCP between them, on this machine: each is a network and host-name namespace on one bridge. Runs jobs over
# both, takes an interface down in the middle, and checks that all ranks end within 10 s with one line of cause.
#
#   bash tests/network/run.sh [build/release/cmoe]
#
# Needs root, iproute2 and util-linux; says so and ends with 0 where they are missing.
set -euo pipefail
cd "$(dirname "$0")/../.."
cmoe=$(realpath "${1:-build/release/cmoe}")
model=$PWD/tests/model/fixtures/tiny-llama
text=$PWD/tests/model/fixtures/text/train.txt

skip() {
  echo "skipped: $1"
  exit 0
}
[ "$(id -u)" -eq 0 ] || skip "needs root"
command -v ip >/dev/null || skip "needs iproute2 (apt-get install iproute2)"
command -v nsenter >/dev/null || skip "needs util-linux"
[ -x "$cmoe" ] || { echo "$cmoe: not built" >&2; exit 1; }

work=$(mktemp -d)
net=cmoe$$ # names of our namespaces
clean() {
  for i in 1 2; do
    for pid in $(ip netns pids "$net-n$i" 2>/dev/null); do kill -9 "$pid" 2>/dev/null || true; done
    ip netns del "$net-n$i" 2>/dev/null || true
  done
  ip netns del "$net-br" 2>/dev/null || true
  rm -rf "$work"
}
trap clean EXIT
ip netns add "$net-br" 2>/dev/null || skip "may not make network namespaces"
ip -n "$net-br" link add br0 type bridge
ip -n "$net-br" link set br0 up
for i in 1 2; do
  ip netns add "$net-n$i"
  ip -n "$net-n$i" link set lo up
  ip link add "v$i" netns "$net-br" type veth peer name eth0 netns "$net-n$i"
  ip -n "$net-br" link set "v$i" master br0 up
  ip -n "$net-n$i" addr add "10.78.0.$i/24" dev eth0
  ip -n "$net-n$i" link set eth0 up
done

# mpirun starts the second node's daemon with this in place of ssh. An own host name, as shared memory is named after it.
cat >"$work/agent" <<AGENT
#!/bin/bash
host=\$1
shift
exec nsenter --net=/run/netns/$net-n\${host##*.} unshare --uts bash -c "hostname n\${host##*.}; \$*"
AGENT
chmod +x "$work/agent"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1 \
  OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader,tcp \
  OMPI_MCA_btl_tcp_if_include=eth0 OMPI_MCA_oob_tcp_if_include=eth0 OMPI_MCA_btl_vader_single_copy_mechanism=none

# over_two_nodes RANKS_PER_NODE ARGUMENTS...: the ranks of n1 first
over_two_nodes() {
  local ranks=$1
  shift
  exec nsenter --net="/run/netns/$net-n1" unshare --uts bash -c 'hostname n1; exec "$@"' - \
    mpirun --mca plm_rsh_agent "$work/agent" --mca orte_keep_fqdn_hostnames 1 -H "10.78.0.1:$ranks,10.78.0.2:$ranks" -n $((2 * ranks)) \
    "$cmoe" "$@" --threads 1 --quiet
}
evaluate=(evaluate --perplexity --model "$model" --dataset "$text" --seq-len 128)

# ranks_of NODE: pids of our program there
ranks_of() {
  for pid in $(ip netns pids "$net-n$1"); do
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = cmoe ] && echo "$pid"
  done || true
}

echo "== whole: two ranks on each node against one rank"
"$cmoe" "${evaluate[@]}" --windows 8 --json "$work/one.json" --threads 1 --quiet >/dev/null
(over_two_nodes 2 "${evaluate[@]}" --windows 8 --json "$work/four.json") >/dev/null
for file in one four; do sed -n '/"nll": \[/,/\]/p' "$work/$file.json" >"$work/$file.nll"; done
cmp "$work/one.nll" "$work/four.nll"
echo "ok: the same losses to the bit"

echo "== cut: the second node's interface goes down in the middle"
(over_two_nodes 2 "${evaluate[@]}" --stride 1 --json "$work/cut.json") >"$work/out" 2>"$work/err" &
job=$!
disown "$job"
for _ in $(seq 100); do
  [ "$(ranks_of 1 | wc -l)" -eq 2 ] && [ "$(ranks_of 2 | wc -l)" -eq 2 ] && break
  sleep 0.1
done
sleep 2
[ -n "$(ranks_of 2)" ] || { echo "the job ended before the cut" >&2; cat "$work/err" >&2; exit 1; }
ip -n "$net-n2" link set eth0 down
start=$(date +%s.%N)
for _ in $(seq 150); do
  [ -z "$(ranks_of 1)$(ranks_of 2)" ] && break
  sleep 0.1
done
took=$(awk -v a="$start" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }')
left="$(ranks_of 1) $(ranks_of 2)"
# mpirun cannot hear from the lost node's daemon and may wait for it; the ranks are what counts.
kill "$job" 2>/dev/null || true
for _ in $(seq 20); do kill -0 "$job" 2>/dev/null || break; sleep 0.1; done
grep "error: " "$work/err" || true
[ "$left" = " " ] || { echo "FAILED: ranks live on: $left" >&2; exit 1; }
[ "$(grep -c "error: rank 2 on host n2 sent no heartbeat" "$work/err")" -eq 1 ] || { echo "FAILED: no cause" >&2; cat "$work/err" >&2; exit 1; }
[ "$(grep -c "error: " "$work/err")" -eq 1 ] || { echo "FAILED: more than one cause" >&2; exit 1; }
awk -v t="$took" 'BEGIN { exit !(t <= 10) }' || { echo "FAILED: took $took s" >&2; exit 1; }
[ ! -e "$work/cut.json" ] || { echo "FAILED: a result stands" >&2; exit 1; }
echo "ok: all four ranks ended $took s after the cut"

#!/bin/bash
# A Slurm cluster of N nodes on one machine, for tests. Needs root, slurm-wlm, munge, iproute2 and util-linux.
#
#   cluster.sh up FOLDER N           starts it; all state under FOLDER
#   cluster.sh run FOLDER COMMAND    runs a command inside it (sbatch, squeue, ...)
#   cluster.sh down FOLDER           stops it and removes its network
#
# Each node is a slurmd in a network and a host-name namespace of its own. Without the first, Open MPI's TCP transport meets
# several nodes at one address and sometimes crashes; without the second, ranks of two nodes share memory segments by name.
# The node daemons enter their network with nsenter: `ip netns exec` would remount /sys, and slurmd needs /sys/fs/cgroup.
set -euo pipefail

prefix=cmoe-slurm
usage() { echo "usage: $0 up FOLDER N | run FOLDER COMMAND... | down FOLDER" >&2; exit 2; }
[ $# -ge 2 ] || usage
action=$1
cluster=$(realpath -m "$2")
shift 2
export SLURM_CONF=$cluster/etc/slurm.conf

inside() { nsenter --net="/run/netns/$prefix-$1" "${@:2}"; }

# One bridge in the controller's namespace, one leg into each node's. No route leads outside.
network_up() {
  local nodes=$1 i
  ip netns add "$prefix-ctl"
  ip -n "$prefix-ctl" link set lo up
  ip -n "$prefix-ctl" link add br0 type bridge
  ip -n "$prefix-ctl" addr add 10.77.0.254/24 dev br0
  ip -n "$prefix-ctl" link set br0 up
  for i in $(seq "$nodes"); do
    ip netns add "$prefix-n$i"
    ip -n "$prefix-n$i" link set lo up
    ip link add "leg$i" netns "$prefix-ctl" type veth peer name eth0 netns "$prefix-n$i"
    ip -n "$prefix-ctl" link set "leg$i" master br0 up
    ip -n "$prefix-n$i" addr add "10.77.0.$i/24" dev eth0
    ip -n "$prefix-n$i" link set eth0 up
  done
}

network_down() {
  local name
  for name in $(ip netns list | awk -v p="^$prefix-" '$1 ~ p { print $1 }'); do ip netns del "$name"; done
}

write_config() {
  local nodes=$1 i
  cat >"$SLURM_CONF" <<CONF
ClusterName=cmoe-test
SlurmctldHost=$(hostname -s)(10.77.0.254)
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$cluster/run/munge.sock
CredType=cred/munge
StateSaveLocation=$cluster/state
SlurmdSpoolDir=$cluster/spool/%n
TmpFS=$cluster/spool/%n/tmp
SlurmctldPidFile=$cluster/run/slurmctld.pid
SlurmdPidFile=$cluster/run/slurmd-%n.pid
SlurmctldLogFile=$cluster/log/slurmctld.log
SlurmdLogFile=$cluster/log/slurmd-%n.log
PlugStackConfig=$cluster/etc/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
JobRequeue=1
ReturnToService=2
KillWait=5
MpiDefault=pmix
CONF
  : >"$cluster/etc/plugstack.conf"
  for i in $(seq "$nodes"); do
    mkdir -p "$cluster/spool/n$i/tmp"
    # More CPUs than the machine may have: config_overrides allows it.
    echo "NodeName=n$i NodeHostname=n$i NodeAddr=10.77.0.$i Port=$((17000 + i)) CPUs=4 Sockets=1 CoresPerSocket=4" \
      "ThreadsPerCore=1 RealMemory=4000 State=UNKNOWN"
  done >>"$SLURM_CONF"
  echo "PartitionName=test Nodes=n[1-$nodes] Default=YES MaxTime=INFINITE State=UP" >>"$SLURM_CONF"
}

# start LOG COMMAND...: a daemon in the foreground of a background job, so that its process is ours to end.
start() {
  local log=$cluster/log/$1
  "${@:2}" >"$log" 2>&1 &
  echo $! >>"$cluster/run/pids"
}

up() {
  local nodes=$1 i
  mkdir -p "$cluster"/{etc,run,log,state,spool}
  : >"$cluster/run/pids"
  head -c 1024 /dev/urandom >"$cluster/etc/munge.key"
  chmod 400 "$cluster/etc/munge.key"
  network_up "$nodes"
  write_config "$nodes"
  start munged.out munged --force --foreground --key-file="$cluster/etc/munge.key" --socket="$cluster/run/munge.sock" \
    --pid-file="$cluster/run/munged.pid" --log-file="$cluster/log/munged.log" --seed-file="$cluster/run/munge.seed"
  for _ in $(seq 100); do
    [ -S "$cluster/run/munge.sock" ] && break
    sleep 0.05
  done
  start slurmctld.out nsenter --net="/run/netns/$prefix-ctl" slurmctld -D
  for i in $(seq "$nodes"); do
    start "slurmd-n$i.out" nsenter --net="/run/netns/$prefix-n$i" unshare --uts \
      bash -c "hostname n$i && exec slurmd -D -N n$i"
  done
  for _ in $(seq 150); do
    [ "$(inside ctl sinfo -h -t idle -o %D 2>/dev/null)" = "$nodes" ] && return
    sleep 0.1
  done
  echo "$0: the cluster did not come up" >&2
  tail -n 20 "$cluster"/log/* >&2
  return 1
}

down() {
  local pids=() pid
  if [ -f "$cluster/run/pids" ]; then mapfile -t pids < <(tac "$cluster/run/pids"); fi
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for _ in $(seq 100); do
    for pid in "${pids[@]}"; do
      if kill -0 "$pid" 2>/dev/null; then
        sleep 0.1
        continue 2
      fi
    done
    break
  done
  for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
  network_down
  rm -rf "$cluster/run" "$cluster/state" "$cluster/spool"
}

case $action in
  up) [ $# -eq 1 ] || usage; up "$1" ;;
  run) [ $# -ge 1 ] || usage; inside ctl "$@" ;;
  down) down ;;
  *) usage ;;
esac

#!/bin/bash
# Sets up, builds and runs the tests.
#
#   bash tests/run.sh [PRESET] [CTEST ARGUMENT ...]     PRESET: release (default), debug, asan, tsan
#   bash tests/run.sh asan -R carve                     the carve tests under ASan and UBSan
#
# CMOE_JOBS sets how many compilers and tests run side by side (default: the number of cores).
# Needs no Python. Tests that need data beyond the repository look in $CMOE_SHARED_DATA and skip without it.
set -euo pipefail
cd "$(dirname "$0")/.."

preset=release
case ${1:-} in
  "" | -*) ;;
  release | debug | asan | tsan) preset=$1; shift ;;
  *) echo "tests/run.sh: unknown preset '$1'; expected release, debug, asan or tsan" >&2; exit 2 ;;
esac
jobs=${CMOE_JOBS:-$(nproc)}
build=build/$preset
mkdir -p "$build"

# Runs a step with its output in a log; shows the log only when it fails.
step() {
  local name=$1 log=$build/$1.log start=$SECONDS
  shift
  if ! "$@" >"$log" 2>&1; then
    tail -n 60 "$log" >&2
    echo "tests/run.sh: $name failed; the whole log is $log" >&2
    exit 1
  fi
  echo "$name: $((SECONDS - start)) s"
}

bash jobs/setup.sh
configure=(cmake --preset "$preset" -DCMOE_WERROR=ON)
if command -v ccache >/dev/null; then configure+=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
step configure "${configure[@]}"
step build cmake --build --preset "$preset" -j "$jobs"
exec ctest --preset "$preset" -j "$jobs" --output-junit junit.xml "$@"

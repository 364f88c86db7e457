#!/bin/bash
# Installs what the build needs, and only what is missing; says nothing when nothing is.
#
#   bash jobs/setup.sh [PACKAGE ...]     the build's packages, and any further ones named
#
# Debian and its kin: apt-get as root or through sudo. Elsewhere, or without either, it names what to install and leaves with 2.
set -euo pipefail

packages=(libopenmpi-dev openmpi-bin libhdf5-openmpi-dev libboost-program-options-dev libdnnl-dev libeigen3-dev
  nlohmann-json3-dev libfmt-dev libspdlog-dev libpcre2-dev libutf8proc-dev zlib1g-dev
  libgtest-dev libgmock-dev libbenchmark-dev "$@")
missing=()

# Tools count wherever they come from; libraries are asked of the package system.
while read -r tool package; do
  command -v "$tool" >/dev/null || missing+=("$package")
done <<'TOOLS'
g++ g++
cmake cmake
ninja ninja-build
pkg-config pkg-config
git git
TOOLS

if ! command -v dpkg-query >/dev/null; then
  echo "setup: not a Debian system; make sure that these are installed under your system's names:" >&2
  echo "  ${missing[*]} ${packages[*]}" >&2
  exit 0
fi
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "setup: ${#missing[@]} packages are missing and this user can neither be root nor use sudo; ask for: ${missing[*]}" >&2
    exit 2
  fi
  as_root=(sudo)
fi
install() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
}
echo "setup: installing ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# The first try fails where the package lists are absent or old.
if ! install >"$log" 2>&1; then
  "${as_root[@]}" apt-get update -qq >"$log" 2>&1 || true
  if ! install >"$log" 2>&1; then
    cat "$log" >&2
    echo "setup: apt-get could not install ${missing[*]}" >&2
    exit 2
  fi
fi

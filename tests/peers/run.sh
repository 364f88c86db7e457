#!/bin/bash
# Checks cmoe live against torch and transformers: logits, perplexity and tokens, dense and carved.
#
#   bash tests/peers/run.sh      after bash tests/run.sh (needs build/release/cmoe)
#
# Installs torch and transformers from PyPI into build/peers-venv (about 2 minutes, 4 GB), or uses the Python environment
# that CMOE_PEERS_VENV names. The demo model takes part once `bash jobs/demo.sh --fetch` has fetched it.
set -euo pipefail
cd "$(dirname "$0")/../.."

cmoe=$PWD/build/release/cmoe
fixtures=$PWD/tests/model/fixtures
work=$PWD/build/peers
demo=$PWD/build/demo
venv=${CMOE_PEERS_VENV:-$PWD/build/peers-venv}
[ -x "$cmoe" ] || { echo "tests/peers: build/release/cmoe is missing; run bash tests/run.sh first" >&2; exit 2; }

if [ -z "${CMOE_PEERS_VENV:-}" ] && [ ! -e "$venv/complete" ]; then
  echo "== installing torch and transformers into build/peers-venv"
  python3 -c 'import ensurepip' 2>/dev/null || bash jobs/setup.sh python3-venv
  python3 -m venv "$venv"
  # gguf and accelerate are what transformers needs to read a GGUF file.
  "$venv/bin/pip" install -q --disable-pip-version-check torch transformers safetensors tokenizers numpy h5py gguf accelerate peft lm_eval
  touch "$venv/complete"
fi
python=$venv/bin/python
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error HF_HOME=$work/hf PYTHONDONTWRITEBYTECODE=1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
rm -rf "$work"
mkdir -p "$work"

# carve MODEL TEXT NAME SAMPLES SEQ_LEN EXPERTS RECIPE...: a carved folder for each recipe under $work/NAME.
carve() {
  local model=$1 text=$2 name=$3 samples=$4 seq_len=$5 experts=$6
  shift 6
  mkdir -p "$work/$name"
  "$cmoe" profile --model "$model" --dataset "$text" --samples "$samples" --seq-len "$seq_len" --seed 0 --quiet \
    --out "$work/$name/profile.h5"
  local recipe
  for recipe in "$@"; do
    "$cmoe" carve --model "$model" --profile "$work/$name/profile.h5" --experts "$experts" --recipe "$recipe" --quiet \
      --out "$work/$name/$recipe"
  done
}
# compare MODEL PEER TEXT TOKENS: logits and perplexity of cmoe on MODEL against transformers on PEER.
compare() {
  "$python" tests/peers/check_logits.py --cmoe "$cmoe" --model "$1" --peer "$2" --text "$3" --max-tokens "$4"
  "$python" tests/peers/check_perplexity.py --cmoe "$cmoe" --model "$1" --peer "$2" --text "$3" --seq-len "$4" --windows 4
}

echo "== the exported Python files against the definition"
"$python" tests/peers/check_modeling.py

echo "== tiny model"
text=$fixtures/text/valid.txt
"$python" tests/peers/check_tokens.py --cmoe "$cmoe" --model "$fixtures/tiny-llama" --peer "$fixtures/tiny-llama" "$text" README.md
compare "$fixtures/tiny-llama" "$fixtures/tiny-llama" "$text" 128
carve "$fixtures/tiny-llama" "$fixtures/text/train.txt" tiny 16 128 S3A3E8 best authors paper static flap
for recipe in best authors paper static flap; do
  compare "$work/tiny/$recipe" "$work/tiny/$recipe" "$text" 128
done
"$python" tests/peers/check_profile.py --model "$fixtures/tiny-llama" --text "$fixtures/text/train.txt" \
  --profile "$work/tiny/profile.h5"
"$python" tests/peers/check_tokens.py --cmoe "$cmoe" --model "$work/tiny/best" --peer "$work/tiny/best" "$text"
"$python" tests/peers/check_adapter.py --cmoe "$cmoe" --model "$work/tiny/best" --dataset "$text" --work "$work/adapter"

model=$demo/SmolLM2-135M-Instruct.Q4_1.gguf
if [ ! -s "$model" ]; then
  echo "tests/peers: passed; the demo model was skipped (bash jobs/demo.sh --fetch gets it)"
  exit 0
fi
echo "== demo model (GGUF)"
text=$demo/debian-policy.txt
"$python" tests/peers/gguf_to_folder.py "$model" "$work/smollm2"
"$python" tests/peers/check_tokens.py --cmoe "$cmoe" --model "$model" --peer "$work/smollm2" "$text" "$demo/debian-reference.txt"
compare "$model" "$work/smollm2" "$text" 512
carve "$model" "$demo/debian-reference.txt" demo 4 1024 S3A3E8 best authors
for recipe in best authors; do
  compare "$work/demo/$recipe" "$work/demo/$recipe" "$text" 512
done
"$python" tests/peers/check_tokens.py --cmoe "$cmoe" --model "$work/demo/best" --peer "$work/demo/best" "$text"
# Real rows where there are any, else the made-up ones of the tests.
tasks=${CMOE_SHARED_DATA:-}/tasks
if [ -e "$tasks/piqa.valid.jsonl.gz" ]; then
  rows=(piqa="$tasks/piqa.valid.jsonl.gz" arc_easy="$tasks/arc_easy.validation.jsonl.gz" winogrande="$tasks/winogrande_xl.validation.jsonl.gz"
    hellaswag="$tasks/hellaswag.val.rows0-1999.jsonl.gz" lambada_openai="$tasks/lambada_openai.test.rows0-1999.jsonl.gz")
else
  tasks=$PWD/tests/eval/fixtures/tasks
  rows=(piqa="$tasks/piqa.validation.jsonl" arc_easy="$tasks/arc_easy.test.jsonl" winogrande="$tasks/winogrande.validation.jsonl")
fi
"$python" tests/peers/check_tasks.py --cmoe "$cmoe" --model "$work/smollm2" --work "$work/tasks" "${rows[@]/#/--rows=}"
echo "tests/peers: passed"

"""Per-window loss of `cmoe evaluate --perplexity` against transformers, f32.

    python tests/peers/check_perplexity.py --cmoe BINARY --model M --peer FOLDER --text FILE --seq-len N --windows W

Consecutive windows, mean loss over the N - 1 predicted tokens of each (the GPTQ protocol). Fails above 1e-4 nats.
"""

import argparse
import json
import math
import pathlib
import sys
import tempfile

import torch
from transformers import AutoTokenizer

from peer import load_peer, peer_logits, run_cmoe

TOLERANCE_NATS = 1e-4


def main():
    parser = argparse.ArgumentParser()
    for name in ("--cmoe", "--model", "--peer", "--text"):
        parser.add_argument(name, required=True)
    parser.add_argument("--seq-len", type=int, required=True)
    parser.add_argument("--windows", type=int, required=True)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "result.json"
        run_cmoe(a.cmoe, "evaluate", "--perplexity", "--model", a.model, "--dataset", a.text, "--seq-len", a.seq_len,
                 "--windows", a.windows, "--dtype", "f32", "--quiet", "--json", out)
        ours = json.loads(out.read_text())["models"][0]
    text = pathlib.Path(a.text).read_text(encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(a.peer)(text, return_tensors="pt", verbose=False).input_ids[0]
    model = load_peer(a.peer)
    theirs = []
    for w in range(a.windows):
        window = ids[w * a.seq_len : (w + 1) * a.seq_len]
        logits = peer_logits(model, window)
        theirs.append(torch.nn.functional.cross_entropy(logits[:-1].double(), window[1:]).item())
    if len(ours["nll"]) != a.windows:
        sys.exit(f"{a.model}: {len(ours['nll'])} windows, expected {a.windows}")
    worst = max(abs(x - y) for x, y in zip(ours["nll"], theirs))
    perplexity = math.exp(sum(theirs) / len(theirs))
    print(f"loss    {pathlib.Path(a.model).name}: {a.windows} windows of {a.seq_len}, worst difference {worst:.1e} nats, "
          f"perplexity {ours['perplexity']:.4f} and {perplexity:.4f}, active {ours['active_fraction']:.3f}")
    if not worst <= TOLERANCE_NATS:
        sys.exit(f"{a.model}: losses {ours['nll']}, expected {theirs} within {TOLERANCE_NATS} nats")
    if not math.isclose(ours["perplexity"], math.exp(sum(ours["nll"]) / a.windows), rel_tol=1e-6):
        sys.exit(f"{a.model}: perplexity {ours['perplexity']} is not exp of the mean of its windows")


if __name__ == "__main__":
    main()

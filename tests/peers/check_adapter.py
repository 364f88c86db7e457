"""Checks that PEFT loads the adapter of `cmoe finetune` and gets the logits that cmoe gets, and so does the merged folder.

    python tests/peers/check_adapter.py --cmoe BINARY --model CARVED --dataset TEXT --work FOLDER

The router is left as it is: PEFT has no place for what `cmoe finetune` otherwise trains of it.
"""

import argparse
import pathlib
import sys

import numpy as np
from peft import PeftModel

from peer import load_peer, peer_logits, run_cmoe


def main():
    parser = argparse.ArgumentParser()
    for name in ("cmoe", "model", "dataset", "work"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()
    work = pathlib.Path(args.work)
    tuned, merged, out, ids_out = work / "tuned", work / "merged", work / "logits.npy", work / "ids.npy"
    work.mkdir(parents=True, exist_ok=True)
    run_cmoe(args.cmoe, "finetune", "--model", args.model, "--dataset", args.dataset, "--samples", 8, "--seq-len", 64, "--lr", 5e-3,
             "--lora-rank", 4, "--expert-rank", 2, "--no-router-scale", "--balance", "none", "--quiet", "--out", tuned)
    run_cmoe(args.cmoe, "merge", "--model", args.model, "--adapter", tuned, "--dtype", "f32", "--quiet", "--out", merged)
    run_cmoe(args.cmoe, "logits", "--model", args.model, "--adapter", tuned, "--text", args.dataset, "--max-tokens", 64, "--quiet",
             "--out", out, "--ids-out", ids_out)
    expected, ids = np.load(out), np.load(ids_out)

    base = load_peer(args.model)
    untouched = peer_logits(base, ids).numpy()
    adapted = PeftModel.from_pretrained(base, tuned)
    for name, found in (("peft", peer_logits(adapted, ids).numpy()), ("merged", peer_logits(load_peer(merged), ids).numpy())):
        worst = np.abs(found - expected).max()
        moved = np.abs(untouched - expected).max()
        print(f"{name}: worst difference {worst:.2e} of logits that the adapter moved by up to {moved:.2e}")
        if worst > 2e-4 or moved < 1e-2:
            sys.exit(f"{name}: differs by {worst}, expected at most 2e-4 (and an adapter that moves logits by 1e-2)")


if __name__ == "__main__":
    main()

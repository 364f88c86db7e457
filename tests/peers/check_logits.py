"""Logits of `cmoe logits` against transformers on the same tokens, f32.

    python tests/peers/check_logits.py --cmoe BINARY --model M --peer FOLDER --text FILE --max-tokens N

M is what cmoe reads (dense or carved, any format), FOLDER the same model for transformers. Fails when a logit differs by more
than 2e-4 of the largest one. In a carved model a score within rounding of its threshold may choose another set of experts
and move a whole row, so the worst row is named.
"""

import argparse
import pathlib
import sys
import tempfile

import numpy as np

from peer import load_peer, peer_logits, run_cmoe

TOLERANCE = 2e-4


def main():
    parser = argparse.ArgumentParser()
    for name in ("--cmoe", "--model", "--peer", "--text"):
        parser.add_argument(name, required=True)
    parser.add_argument("--max-tokens", type=int, default=512)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out, ids_out = pathlib.Path(folder) / "logits.npy", pathlib.Path(folder) / "ids.npy"
        run_cmoe(a.cmoe, "logits", "--model", a.model, "--text", a.text, "--max-tokens", a.max_tokens, "--out", out,
                 "--ids-out", ids_out)
        ours, ids = np.load(out), np.load(ids_out)
    theirs = peer_logits(load_peer(a.peer), ids).numpy()
    if ours.shape != theirs.shape:
        sys.exit(f"{a.model}: logits have shape {ours.shape}, expected {theirs.shape}")
    difference = np.abs(ours - theirs)
    limit = TOLERANCE * np.abs(theirs).max()
    row, column = np.unravel_index(difference.argmax(), difference.shape)
    worst = difference[row, column]
    bad_rows = int((difference.max(1) > limit).sum())
    print(f"logits  {pathlib.Path(a.model).name}: {ours.shape[0]} tokens, worst difference {worst:.1e} "
          f"({worst / np.abs(theirs).max():.1e} of the largest logit)")
    if not worst <= limit:
        sys.exit(f"{a.model}: logit [{row}, {column}] is {ours[row, column]}, expected {theirs[row, column]} within {limit:.1e}; "
                 f"{bad_rows} of {ours.shape[0]} rows differ")


if __name__ == "__main__":
    main()

"""Reads a profile with h5py and checks it: layout, sums, and the tokens of the text.

    python check_profile.py --model FOLDER --text FILE --profile P.h5
"""
import argparse
import hashlib
import os

import h5py
import numpy as np
from transformers import AutoTokenizer


def check(condition, *what):
    if not condition:
        raise SystemExit(f"check_profile: {' '.join(map(str, what))}")


def main():
    parser = argparse.ArgumentParser()
    for name in ("model", "text", "profile"):
        parser.add_argument("--" + name, required=True)
    options = parser.parse_args()
    with h5py.File(options.profile, "r") as file:
        attributes = dict(file.attrs)
        check(attributes["format"] in ("cmoe-profile-1", b"cmoe-profile-1"), "format", attributes["format"])
        layers, neurons, k_act = (int(attributes[key]) for key in ("layers", "neurons", "k_act"))
        tokens = file["tokens"][:]
        check(tokens.dtype == np.int32 and tokens.ndim == 2, "tokens", tokens.dtype, tokens.shape)
        check(sorted(file["layers"]) == [f"{layer:04}" for layer in range(layers)], "layers", list(file["layers"]))
        for name, group in file["layers"].items():
            for kind in ("raw", "normalized"):
                markers, count = group[f"markers_{kind}"][:], group[f"count_{kind}"][:]
                check(markers.shape == (tokens.size, k_act), name, kind, markers.shape)
                check((np.diff(markers.astype(np.int64), axis=1) > 0).all(), name, kind, "markers of a token are not ascending")
                check((np.bincount(markers.ravel(), minlength=neurons) == count).all(), name, kind, "counts are not the markers'")
            mean, square, size = (group[key][:] for key in ("mean", "second_moment", "mean_abs"))
            check((np.abs(mean) <= size + 1e-12).all() and (size**2 <= square * (1 + 1e-9) + 1e-12).all(), name, "moments")
        digest = hashlib.sha256(open(options.text, "rb").read()).hexdigest()
        datasets = attributes["datasets"]
        datasets = datasets.decode() if isinstance(datasets, bytes) else datasets
        check(datasets == f"{os.path.basename(options.text)} {digest}\n", "datasets", datasets)
    # Every calibration sequence is a window of the text as transformers tokenises it.
    text = open(options.text, encoding="utf-8", newline="").read()
    ids = AutoTokenizer.from_pretrained(options.model)(text, add_special_tokens=False)["input_ids"]
    windows = np.lib.stride_tricks.sliding_window_view(np.array(ids, dtype=np.int32), tokens.shape[1])
    for i, sequence in enumerate(tokens):
        check((windows == sequence).all(axis=1).any(), "sequence", i, "is not in the text")
    print(f"profile: {layers} layers, {tokens.size} tokens, {neurons} neurons: well-formed, sums agree, tokens are the text's")


if __name__ == "__main__":
    main()

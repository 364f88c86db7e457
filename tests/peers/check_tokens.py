"""Tokens of `cmoe tokenize --json` against Hugging Face tokenizers, token for token.

    python tests/peers/check_tokens.py --cmoe BINARY --model M --peer FOLDER TEXT...

Also decodes the tokens and expects the text back.
"""

import argparse
import json
import pathlib
import sys

from transformers import AutoTokenizer

from peer import run_cmoe


def main():
    parser = argparse.ArgumentParser()
    for name in ("--cmoe", "--model", "--peer"):
        parser.add_argument(name, required=True)
    parser.add_argument("texts", nargs="+", type=pathlib.Path)
    a = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(a.peer)
    for path in a.texts:
        text = path.read_bytes().decode("utf-8")
        ours = json.loads(run_cmoe(a.cmoe, "tokenize", "--model", a.model, "--text", path, "--json"))["ids"]
        theirs = tokenizer(text, verbose=False).input_ids
        if ours != theirs:
            at = next((i for i, (x, y) in enumerate(zip(ours, theirs)) if x != y), min(len(ours), len(theirs)))
            sys.exit(f"{path}: token {at} is {ours[at : at + 5]}, expected {theirs[at : at + 5]} "
                     f"({tokenizer.decode(theirs[at : at + 5])!r}); {len(ours)} and {len(theirs)} tokens")
        if tokenizer.decode(ours, skip_special_tokens=True, clean_up_tokenization_spaces=False) != text:
            sys.exit(f"{path}: the tokens do not decode to the text")
        print(f"tokens  {path.name}: {len(ours)} equal")


if __name__ == "__main__":
    main()

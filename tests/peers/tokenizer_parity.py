"""Compares `cmoe tokenize` with Hugging Face on whole text files; any difference fails.

usage: tokenizer_parity.py CMOE MODEL TEXT...
  CMOE   the program
  MODEL  Hugging Face folder, tokenizer.json, or GGUF file (read by transformers' AutoTokenizer)
  TEXT   files, plain or .gz; both programs read the unpacked bytes as one document
"""

import gzip
import json
import os
import pathlib
import subprocess
import sys
import tempfile


def hugging_face(model):
    """text -> ids, with what the post-processor adds."""
    path = pathlib.Path(model)
    if path.suffix == ".gguf":
        from transformers import AutoTokenizer
        backend = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name).backend_tokenizer
    elif path.is_dir():
        from transformers import AutoTokenizer
        backend = AutoTokenizer.from_pretrained(str(path)).backend_tokenizer
    else:
        from tokenizers import Tokenizer
        backend = Tokenizer.from_file(str(path))
    return lambda text: backend.encode(text).ids


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    cmoe, model, texts = sys.argv[1], sys.argv[2], sys.argv[3:]
    encode = hugging_face(model)
    failures = 0
    for name in texts:
        data = pathlib.Path(name).read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        with tempfile.NamedTemporaryFile(suffix=".txt") as file:
            file.write(data)
            file.flush()
            command = [cmoe, "tokenize", "--model", model, "--text", file.name, "--text-format", "plain", "--json"]
            ours = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ).stdout)["ids"]
        theirs = encode(data.decode("utf-8"))
        first = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
        same = ours == theirs
        failures += not same
        print(f"{'ok  ' if same else 'FAIL'} {pathlib.Path(name).name}: {len(theirs)} tokens" +
              ("" if same else f", cmoe {len(ours)}; first difference at {first}: cmoe {ours[first:first + 5]}, Hugging Face {theirs[first:first + 5]}"))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()

"""The authors' carve against `cmoe carve --recipe authors`: seconds on the same CPU, model and tokens.

    python tests/peers/bench_carve.py --authors CHECKOUT --cmoe BINARY --model FOLDER --profile P.h5 --work FOLDER
        [--experts S3A3E8] [--dtype float32|bfloat16] [--threads 2] [--ranks 2]

CHECKOUT is a checkout of their program (github.com/JarvisPei/CMoE); its CMoE_utils.py and CMoE_model.py are run as they are,
with 'cuda' read as 'cpu'. The profile names the calibration windows. Needs torch, transformers, lap, matplotlib, h5py. Timed are
the loops over layers of both (attention, markers, assignment, router, output of the carved layer; cmoe's also reads the layer and
writes its experts), and the whole of cmoe carve: start, reading, loss, checksums.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import types


def carve_by_authors(args):
    import h5py
    import torch
    from transformers import LlamaForCausalLM

    source = pathlib.Path(args.work) / "authors"
    source.mkdir(parents=True, exist_ok=True)
    for name in ("CMoE_utils.py", "CMoE_model.py"):
        text = (pathlib.Path(args.authors) / name).read_text()
        (source / name).write_text(text.replace("'cuda'", "'cpu'").replace(".cuda()", ".cpu()"))
    sys.path.insert(0, str(source))
    from CMoE_utils import construct_moe

    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    model = LlamaForCausalLM.from_pretrained(args.model, dtype=dtype).eval()
    # Their Router makes bfloat16 parameters whatever the model's type.
    torch.set_default_dtype(dtype)
    with h5py.File(args.profile) as profile:
        tokens = torch.tensor(profile["tokens"][:], dtype=torch.long)
    routed = types.SimpleNamespace(k_act=10, bias_speed=0.001)
    shared, active, experts = (int(part) for part in args.experts.replace("S", "").replace("A", " ").replace("E", " ").split())
    with torch.no_grad():
        x = model.model.embed_tokens(tokens)
        positions = torch.arange(tokens.shape[1])[None]
        rope = model.model.rotary_emb(x, positions)
        begin = time.perf_counter()
        for layer in model.model.layers:
            attention = layer.self_attn.forward
            layer.self_attn.forward = lambda *a, attention=attention, **k: attention(*a, position_embeddings=rope, **k)
            x = construct_moe(layer, x, None, positions, n_experts=experts, n_activated=active, n_shared=shared, args=routed).to(dtype)
        return time.perf_counter() - begin


def carve_by_cmoe(args):
    out = pathlib.Path(args.work) / "carved"
    shutil.rmtree(out, ignore_errors=True)
    command = [args.cmoe, "carve", "--model", args.model, "--profile", args.profile, "--experts", args.experts, "--recipe", "authors",
               "--dtype", {"float32": "f32", "bfloat16": "bf16"}[args.dtype], "--out", str(out)]
    if args.ranks > 1:
        command = ["mpirun", "-n", str(args.ranks), *command, "--threads", str(max(1, args.threads // args.ranks))]
    else:
        command += ["--threads", str(args.threads)]
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    loop = re.search(r"carve: \d+ layers in ([0-9.]+) s", done.stdout + done.stderr)
    return float(loop[1]), time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser()
    for name in ("authors", "cmoe", "model", "profile", "work"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--experts", default="S3A3E8")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--ranks", type=int, default=1)
    args = parser.parse_args()
    pathlib.Path(args.work).mkdir(parents=True, exist_ok=True)
    loop, whole = carve_by_cmoe(args)
    print(f"cmoe: layers {loop:.1f} s, all {whole:.1f} s", flush=True)
    theirs = carve_by_authors(args)
    print(f"authors' program: layers {theirs:.1f} s, {theirs / loop:.2f} times as long; {theirs / whole:.2f} times all of cmoe carve")


if __name__ == "__main__":
    main()

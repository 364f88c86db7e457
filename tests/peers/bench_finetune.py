"""The same LoRA step by PEFT and by cmoe: tokens/s and peak memory.

    python tests/peers/bench_finetune.py --cmoe BINARY --model FOLDER --dataset TEXT --work FOLDER [--seq-len 1024] [--threads 2]

Rank 8 on all seven projections, one sequence a step, Adam, dropout 0.1; the median of the steps behind the first. Each side
runs in a process of its own, with the same number of threads.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def peft_steps(args, dtype):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model, trust_remote_code=True, dtype=getattr(torch, dtype))
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=32, lora_dropout=0.1, target_modules=TARGETS)).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5.95e-5, betas=(0.9, 0.95))
    ids = torch.randint(0, model.config.vocab_size, (1, args.seq_len))
    seconds = []
    for _ in range(args.steps):
        begin = time.perf_counter()
        loss = model(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - begin)
    return args.seq_len / statistics.median(seconds[1:])


def cmoe_steps(args, dtype):
    out = pathlib.Path(args.work) / f"bench-{dtype}-{os.getpid()}"
    subprocess.run([args.cmoe, "finetune", "--model", args.model, "--dataset", args.dataset, "--samples", str(args.steps),
                    "--batch-size", "1", "--seq-len", str(args.seq_len), "--threads", str(args.threads), "--save-every", "0",
                    "--quiet", "--dtype", {"float32": "f32", "bfloat16": "bf16"}[dtype], "--out", str(out)], check=True)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return statistics.median(line["tokens_per_s"] for line in lines[1:])


def main():
    parser = argparse.ArgumentParser()
    for name in ("cmoe", "model", "dataset", "work"):
        parser.add_argument(f"--{name}", required=True)
    for name, default in (("seq-len", 1024), ("threads", 2), ("steps", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", help="one side and type in this process, as peft:float32")
    args = parser.parse_args()
    if args.only:
        side, dtype = args.only.split(":")
        rate = (peft_steps if side == "peft" else cmoe_steps)(args, dtype)
        who = resource.RUSAGE_SELF if side == "peft" else resource.RUSAGE_CHILDREN
        print(json.dumps({"tokens_per_s": rate, "peak_gb": resource.getrusage(who).ru_maxrss / 1e6}))
        return
    pathlib.Path(args.work).mkdir(parents=True, exist_ok=True)
    print("| | type | tokens/s | peak GB |\n|---|---|---|---|")
    for dtype in ("float32", "bfloat16"):
        for side in ("peft", "cmoe"):
            done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", f"{side}:{dtype}"], capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(f"{side} {dtype}: exit code {done.returncode}\n{done.stderr}")
            result = json.loads(done.stdout.splitlines()[-1])
            print(f"| {side} | {dtype} | {result['tokens_per_s']:.0f} | {result['peak_gb']:.2f} |", flush=True)


if __name__ == "__main__":
    main()

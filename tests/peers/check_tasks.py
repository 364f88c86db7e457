"""`cmoe evaluate --tasks` against lm-evaluation-harness on the same rows: requests, log likelihoods, figures, seconds.

    python tests/peers/check_tasks.py --cmoe BINARY --model FOLDER --work FOLDER --rows TASK=FILE [--rows ...] [--shot-rows TASK=FILE ...]
        [--limit 20] [--fewshot 0] [--threads 2] [--batch-size 8] [--tolerance 2e-5]

FILE is JSON lines (.gz), in the form of the Hugging Face data set or in one of the other forms that cmoe reads (PIQA with its labels
beside it, HellaSwag with a joined context). The harness's own task files are used (see tests/eval/make_task_golden.py). Bars: every
request the same text, every log likelihood within the tolerance times its own size (at least 10 nats), every accuracy the same. In
batches the harness pads, which moves its own values by more than a text alone is off. Needs lm_eval, torch, transformers.
"""

import argparse
import gzip
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "eval"))
import make_task_golden as harness  # noqa: E402
from peer import run_cmoe  # noqa: E402

SPLIT = {"piqa": "validation", "hellaswag": "validation", "winogrande": "validation", "boolq": "validation"}


def read_rows(task, path):
    """Rows in the form of the Hugging Face data set."""
    path = pathlib.Path(path)
    opened = gzip.open if path.name.endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    if task == "piqa" and "label" not in rows[0]:
        labels = path.with_name(path.name.split(".jsonl")[0] + "-labels.lst").read_text().split()
        rows = [{**row, "label": int(label)} for row, label in zip(rows, labels, strict=True)]
    if task == "hellaswag" and "ctx_a" not in rows[0]:
        rows = [{"activity_label": r["ctx"].partition(": ")[0], "ctx_a": r["ctx"].partition(": ")[2], "ctx_b": "", "label": str(r["label"]),
                 "endings": r["endings"]} for r in rows]
    return rows


def first_rows(task, rows, limit):
    """The first `limit`, of each subject where there are subjects."""
    taken, counts = [], {}
    for row in rows:
        key = row.get("subject", "") if task == "mmlu" else ""
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= limit:
            taken.append(row)
    return taken


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--cmoe", "--model", "--work"):
        parser.add_argument(name, required=True)
    parser.add_argument("--rows", action="append", required=True)
    parser.add_argument("--shot-rows", action="append", default=[])
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--fewshot", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--tolerance", type=float, default=2e-5)
    args = parser.parse_args()

    import torch
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(args.threads)
    model = HFLM(pretrained=args.model, dtype="float32", device="cpu", batch_size=args.batch_size)
    work = pathlib.Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    shot_files = dict(item.split("=", 1) for item in args.shot_rows)
    worst, failed = 0.0, []
    for item in args.rows:
        task, file = item.split("=", 1)
        split, shot_split = SPLIT.get(task, "test"), "dev" if task == "mmlu" else "train"
        rows = first_rows(task, read_rows(task, file), args.limit)
        shots = read_rows(task, shot_files[task]) if args.fewshot else []
        if task == "mmlu":
            harness.SUBJECTS = sorted({row["subject"] for row in rows})
        for name, kept in ((split, rows), (shot_split, shots)):
            if kept:
                (work / f"{task}.{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        start = time.perf_counter()
        golden = harness.run(model, task, rows, shots, split, args.fewshot)
        theirs = time.perf_counter() - start

        samples, result = work / "samples.jsonl", work / "result.json"
        start = time.perf_counter()
        run_cmoe(args.cmoe, "evaluate", "--model", args.model, "--tasks", task, "--task-data", work, "--fewshot", args.fewshot, "--threads",
                 args.threads, "--log-samples", samples, "--json", result, "--quiet")
        ours = time.perf_counter() - start
        lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
        lines.sort(key=lambda line: line.get("subject", ""))  # as the harness keeps them apart; stable
        if len(lines) != len(golden["samples"]):
            sys.exit(f"{task}: {len(lines)} documents, the harness has {len(golden['samples'])}")
        requests = 0
        for line, sample in zip(lines, golden["samples"]):
            if line["arguments"] != sample["arguments"]:
                sys.exit(f"{task}: document {line['doc_id']} is asked as\n{line['arguments']}\nthe harness asks\n{sample['arguments']}")
            requests += len(line["arguments"])
            for mine, other in zip(line["resps"], sample["resps"], strict=True):
                worst = max(worst, abs(mine[0] - other[0]) / max(10, abs(other[0])))
        figures = json.loads(result.read_text())["models"][0]["results"]
        for name, values in golden["results"].items():
            for key, value in values.items():
                if key.startswith("acc") and "stderr" not in key and abs(figures[name][key] - value) > 1e-9:
                    failed.append(f"{name} {key}: {figures[name][key]}, the harness has {value}")
        shown = {k: round(v, 4) for k, v in figures["mmlu" if task == "mmlu" else task].items() if k in ("acc,none", "acc_norm,none")}
        print(f"{task}: {requests} requests equal, {shown}; {ours:.1f} s, the harness {theirs:.1f} s ({theirs / ours:.1f} times)", flush=True)
    print(f"log likelihoods: worst relative difference {worst:.1e} (bar {args.tolerance:g})")
    if failed or worst > args.tolerance:
        sys.exit("\n".join(failed) or "the bar was missed")


if __name__ == "__main__":
    main()

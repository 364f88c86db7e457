"""Makes tests/eval/fixtures/tasks: rows of every task, made up here, and what lm-evaluation-harness does with them.

    python tests/eval/make_task_golden.py

The harness's own task files are used; only where their rows come from is changed. golden.json has, for each task and number of
worked examples, every request (context and continuation), its log likelihood on tests/model/fixtures/tiny-llama by the harness's
Hugging Face back end in f32, and the figures. Needs lm_eval (0.4.13), torch, transformers, datasets.
"""

import json
import pathlib
import random
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE / "fixtures" / "tasks"
MODEL = HERE.parent / "model" / "fixtures" / "tiny-llama"

PEOPLE = ["Ada", "Bo", "Cleo", "Dan", "Eve", "Finn", "Gil", "Hana"]
THINGS = ["lamp", "river", "stone", "bridge", "garden", "letter", "engine", "window"]
PLACES = ["by the sea", "in the north", "near the mill", "under the hill", "at the market"]
SUBJECTS = ["anatomy", "formal_logic", "high_school_us_history"]


def rows_of(task, seed, count):
    rng = random.Random(seed)
    pick = rng.choice
    rows = []
    for i in range(count):
        who, other = rng.sample(PEOPLE, 2)
        thing, wrong, third, fourth = rng.sample(THINGS, 4)
        place = pick(PLACES)
        if task == "piqa":
            rows.append({"goal": f"How does {who} paint the {thing} {place}?", "sol1": f"With a brush and the {wrong}.",
                         "sol2": f"{who} opens the {thing}, and paints it — twice.", "label": rng.randrange(2)})
        elif task.startswith("arc"):
            labels = list("ABCDE"[: 3 + i % 3]) if i % 2 == 0 else list("12345"[: 3 + i % 3])
            texts = [thing, f"the {wrong} {place}", third, fourth, "none of these"][: len(labels)]
            rows.append({"id": f"made-up-{i}", "question": f"What did {who} find {place}?",
                         "choices": {"text": texts, "label": labels}, "answerKey": pick(labels)})
        elif task == "hellaswag":
            rows.append({"activity_label": pick(["Painting", "Sailing: a guide"]), "ctx_a": f"{who} carries a {thing} [header] home. [title] {place}",
                         "ctx_b": pick(["", "she", "ÉVE said that Bo"]), "label": str(rng.randrange(4)),
                         "endings": [f"opens the {thing}.", f" draws  a {wrong} [substeps] slowly.", f"finds [title] {third}.", "[step] sleeps "]})
        elif task == "winogrande":
            rows.append({"sentence": f"{who} gave {other} the {thing} because _ liked it {place}.", "option1": who, "option2": other,
                         "answer": pick(["1", "2"])})
        elif task == "boolq":
            rows.append({"passage": f"{who} found the {thing} {place}.", "question": f"did {pick([who, other])} find the {thing}", "label": rng.randrange(2)})
        elif task == "sciq":
            rows.append({"support": pick(["", f"  {who} knows the {thing}."]), "question": f"What does {who} know?", "distractor1": wrong,
                         "distractor2": third, "distractor3": fourth, "correct_answer": thing})
        elif task == "openbookqa":
            rows.append({"question_stem": f"{who} opens the", "choices": {"text": [thing, wrong, third, fourth], "label": list("ABCD")},
                         "answerKey": pick([" A", "B", "C", "D"])})
        elif task == "mmlu":
            rows.append({"question": pick([" ", ""]) + f"Which is {place}? ", "subject": SUBJECTS[i % 3], "choices": [thing, wrong, third, fourth],
                         "answer": rng.randrange(4)})
        elif task == "lambada_openai":
            rows.append({"text": f"{who} finds the {thing} {place}. Yesterday {who} carried a {wrong}, and today {who} draws a {third}."})
        elif task == "wikitext":
            section = f" {who} 's {thing} ( 3 @.@ 5 @-@ litre ; see [ {wrong} ] ) was \" found \" {place} , N times . \n"
            rows.append({"page": f" = {thing} = \n \n" + section * (1 + 4 * i) + f" = = {third} = = \n \n It is the {fourth} 's . \n"})
    return rows


def yaml_of(task):
    import lm_eval

    tasks = pathlib.Path(lm_eval.__file__).parent / "tasks"
    name = {"piqa": "piqa/piqa.yaml", "arc_easy": "arc/arc_easy.yaml", "hellaswag": "hellaswag/hellaswag.yaml",
            "winogrande": "winogrande/default.yaml", "boolq": "super_glue/boolq/default.yaml", "sciq": "sciq/sciq.yaml",
            "openbookqa": "openbookqa/openbookqa.yaml", "lambada_openai": "lambada/lambada_openai.yaml", "wikitext": "wikitext/wikitext.yaml",
            "arc_challenge": "arc/arc_easy.yaml"}
    if task.startswith("mmlu_"):
        return tasks / "mmlu" / "default" / f"{task}.yaml"
    return tasks / name[task]


def make_task(task, name, files, shots):
    """The harness's task over local files: split -> path."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager  # noqa: F401  (registers what the YAML files need)
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(yaml_of(name), resolve_func=True)
    for key in ("group", "tag", "task_alias", "dataset_name"):
        config.pop(key, None)
    config.update(task=name, dataset_path="json", dataset_kwargs={"data_files": files}, num_fewshot=shots)
    for split in ("training_split", "validation_split", "test_split"):
        if config.get(split) not in files:
            config.pop(split, None)
    return ConfigurableTask(config=config)


def run(model, task, rows, shot_rows, split, shots, chat=False):
    """Requests, responses and figures of one task, by document. rows by subject where the task has subjects."""
    import lm_eval

    with tempfile.TemporaryDirectory() as folder:
        tasks = []
        names = [task] if task != "mmlu" else [f"mmlu_{s}" for s in SUBJECTS]
        for name in names:
            files = {}
            for key, all_rows in ((split, rows), ("dev" if task == "mmlu" else "train", shot_rows)):
                mine = [r for r in all_rows if task != "mmlu" or f"mmlu_{r['subject']}" == name]
                if mine:
                    path = pathlib.Path(folder) / f"{name}.{key}.jsonl"
                    path.write_text("".join(json.dumps(r) + "\n" for r in mine))
                    files[key] = str(path)
            tasks.append(make_task(task, name, files, shots))
        result = lm_eval.simple_evaluate(model=model, tasks=tasks, num_fewshot=shots, log_samples=True, bootstrap_iters=2,
                                         apply_chat_template=chat, fewshot_as_multiturn=chat)
    made = {"samples": [], "results": {}}
    for name in names:
        samples = sorted(result["samples"][name], key=lambda s: s["doc_id"])
        made["samples"] += [
            {
                "task": name,
                "arguments": [list(a) if isinstance(a, (list, tuple)) else list(a.values()) for a in arguments(s)],
                "resps": [r[0] if isinstance(r[0], (list, tuple)) else [r[0], None] for r in s["resps"]],
            }
            for s in samples
        ]
        made["results"][name] = {k: v for k, v in result["results"][name].items() if isinstance(v, (int, float)) and "," in k}
    if task == "mmlu":
        from lm_eval.api.metrics import pooled_sample_stderr

        sizes = [len(result["samples"][n]) for n in names]
        whole = sum(result["results"][n]["acc,none"] * s for n, s in zip(names, sizes)) / sum(sizes)
        errors = [result["results"][n]["acc_stderr,none"] for n in names]
        made["results"]["mmlu"] = {"acc,none": whole, "acc_stderr,none": float(pooled_sample_stderr(errors, sizes))}
    return made


def arguments(sample):
    found = sample["arguments"]
    return list(found.values()) if isinstance(found, dict) else found


def main():
    from lm_eval.models.huggingface import HFLM

    OUT.mkdir(parents=True, exist_ok=True)
    model = HFLM(pretrained=str(MODEL), dtype="float32", device="cpu", batch_size=1)
    golden = {}
    for seed, (task, split, shots) in enumerate([("piqa", "validation", 2), ("arc_easy", "test", 3), ("hellaswag", "validation", 1),
                                                 ("winogrande", "validation", 3), ("boolq", "validation", 6), ("sciq", "test", 2),
                                                 ("openbookqa", "test", 4), ("mmlu", "test", 1), ("lambada_openai", "test", 0),
                                                 ("wikitext", "test", 0)]):
        rows = rows_of(task, 2 * seed, 6 if task != "mmlu" else 9)
        shot_rows = rows_of(task, 2 * seed + 1, 30 if task == "boolq" else 9) if shots else []
        if task == "piqa":
            shot_rows[3:6] = rows[0:3]  # so that a question is among its own examples
        for name, kept in ((split, rows), ("dev" if task == "mmlu" else "train", shot_rows)):
            if kept:
                (OUT / f"{task}.{name}.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept))
        golden[task] = {str(n): run(model, task, rows, shot_rows, split, n) for n in sorted({0, shots})}
        if task in ("piqa", "winogrande", "mmlu", "lambada_openai"):
            golden[task][f"{shots} chat"] = run(model, task, rows, shot_rows, split, shots, chat=True)
    (OUT / "golden.json").write_text(json.dumps(golden, ensure_ascii=False, indent=0) + "\n")
    print(f"{OUT}: {', '.join(golden)}")


if __name__ == "__main__":
    main()

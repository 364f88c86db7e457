"""Makes tests/analysis/fixtures/golden.json: the measures of `cmoe analyze` on the tiny carved fixtures, by numpy, scipy and torch.

    python tests/analysis/make_analysis_golden.py

Weights come from the folders' safetensors; the inputs of the FFNs from the exported Python model, which runs two windows of the
fixture's golden_ids in f32; every expert is computed from them here. Needs numpy, scipy, torch, transformers, safetensors.
"""

import itertools
import json
import math
import pathlib
import sys
import tempfile

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.optimize import linear_sum_assignment
from scipy.stats import kendalltau, linregress, spearmanr
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).resolve().parent
FIXTURES = HERE.parent / "model" / "fixtures"
sys.path.insert(0, str(HERE.parent / "peers"))
from check_modeling import write_folder  # noqa: E402


def cosines(x):
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit @ unit.T


def silu(x):
    return x / (1 + np.exp(-x))


def neurons(weights, name, matrix):
    w = weights[f"{name}.{matrix}_proj.weight"].astype(np.float64)
    return w.T if matrix == "down" else w


def weight_measures(weights, prefix, routed):
    made = {}
    for matrix in ("gate", "up", "down"):
        experts = [neurons(weights, f"{prefix}experts.{e}", matrix) for e in range(routed)]
        one = {"flat": cosines(np.stack([e.ravel() for e in experts])).tolist()}
        flat, tau, best = [], [], []
        for i, j in itertools.combinations(range(routed), 2):
            a, b = experts[j], experts[i]  # row expert j > i, as the program pairs them
            similarity = cosines(np.concatenate([a, b]))[: len(a), len(a):]
            _, match = linear_sum_assignment(similarity, maximize=True)
            flat.append((a * b[match]).sum() / np.linalg.norm(a) / np.linalg.norm(b))
            tau.append(kendalltau(np.arange(len(a)), match).statistic)
            best.append(similarity.max(1).mean())
        one["matched"] = {"flat": np.mean(flat), "tau": np.mean(tau), "best_cosine": np.mean(best)}
        means = np.stack([e.mean(0) for e in experts + [neurons(weights, f"{prefix}shared_experts", matrix)]])
        one["average"] = cosines(means).tolist()
        z = (means - means.mean(0)) / means.std(0)
        u, s, _ = np.linalg.svd(z)
        components = u[:, :2] * s[:2]
        components *= np.sign(components[np.abs(components).argmax(0), range(2)])
        one["components"] = components.tolist()
        made[matrix] = one
    lower = np.tril_indices(routed, -1)
    names = [n for n in ("weight", "gate_proj.weight", "up_proj.weight") if f"{prefix}router.{n}" in weights]
    made["router_r_squared"] = []
    for name in names:
        x = cosines(weights[f"{prefix}router.{name}"].astype(np.float64))[lower]
        made["router_r_squared"].append(
            {m: linregress(x, np.array(made[m]["average"])[:routed, :routed][lower]).rvalue ** 2 for m in ("gate", "up", "down")})
    return made


def output_measures(weights, prefix, routed, inputs, scores, chosen):
    """inputs [tokens, d]; scores [tokens, R]; chosen [tokens, R] bool."""
    names = [f"{prefix}experts.{e}" for e in range(routed)] + [f"{prefix}shared_experts"]
    outputs, active = [], []
    for name in names:
        gate = silu(inputs @ weights[f"{name}.gate_proj.weight"].astype(np.float64).T)
        h = gate * (inputs @ weights[f"{name}.up_proj.weight"].astype(np.float64).T)
        bias = weights.get(f"{name}.down_proj.bias")
        outputs.append(h @ weights[f"{name}.down_proj.weight"].astype(np.float64).T + (0 if bias is None else bias))
        active.append(float((np.abs(gate) > 1e-3).mean()))
    outputs = np.stack(outputs, 1)  # [tokens, experts, d]
    norms = np.linalg.norm(outputs, axis=2)
    unit = outputs / norms[..., None]
    cos = np.clip(np.einsum("tid,tjd->tij", unit, unit), -1, 1)
    angular = 1 - np.arccos(cos) / math.pi
    n = norms[:, :routed]
    norm_rank = (-n).argsort(1, kind="stable").argsort(1)
    score_rank = (-scores).argsort(1, kind="stable").argsort(1)
    table = np.zeros((routed, routed))
    np.add.at(table, (norm_rank.ravel(), score_rank.ravel()), 1)
    both, others, overlap, chance, exact, exact_chance, energy, best = [], [], [], [], [], [], [], []
    for t in range(len(inputs)):
        k = int(chosen[t].sum())
        for i, j in itertools.combinations(range(routed), 2):
            (both if chosen[t, i] and chosen[t, j] else others).append(cos[t, i, j])
        largest = norm_rank[t] < k
        energy.append((n[t] ** 2)[chosen[t]].sum() / (n[t] ** 2).sum())
        best.append((n[t] ** 2)[largest].sum() / (n[t] ** 2).sum())
        if 0 < k < routed:
            overlap.append((largest & chosen[t]).sum() / k)
            chance.append(k / routed)
            exact.append(float((largest == chosen[t]).all()))
            exact_chance.append(1 / math.comb(routed, k))
    mean_cos, mean_angular = cos.mean(0), angular.mean(0)
    np.fill_diagonal(mean_angular, 1)
    return {"tokens": len(inputs), "cosine": mean_cos.tolist(), "angular": mean_angular.tolist(), "chosen_cosine": np.mean(both),
            "other_cosine": np.mean(others), "norm_rank_by_score_rank": table.tolist(),
            "spearman": np.mean([spearmanr(n[t], scores[t]).statistic for t in range(len(inputs))]), "overlap": np.mean(overlap),
            "overlap_by_chance": np.mean(chance), "exact": np.mean(exact), "exact_by_chance": np.mean(exact_chance),
            "energy": np.mean(energy), "energy_best": np.mean(best), "norm": norms.mean(0).tolist(), "active_share": active,
            "tokens_per_expert": chosen.sum(0).tolist()}


def analyse(name):
    folder = FIXTURES / name
    config = json.loads((folder / "config.json").read_text())
    tensors = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    weights = {k: v.numpy() for k, v in tensors.items()}
    ids = [int(i) for i in (folder / "golden_ids.txt").read_text().split()]
    with tempfile.TemporaryDirectory() as scratch:
        write_folder(pathlib.Path(scratch), {**config, "torch_dtype": "float32"}, tensors)
        model = AutoModelForCausalLM.from_pretrained(scratch, trust_remote_code=True).eval()
    routed = config["num_experts"] - config["num_shared_experts"]
    seen = [{"inputs": [], "scores": [], "chosen": []} for _ in model.model.layers]

    def keep(layer):
        def look(module, args):
            x = args[0].reshape(-1, args[0].shape[-1])
            s = module.scores(x)
            key = s if module.selection_bias is None else s + module.selection_bias
            if module.selector == "threshold":
                chosen = key >= module.threshold
            else:
                chosen = torch.zeros_like(key, dtype=torch.bool).scatter_(-1, key.topk(module.num_active).indices, True)
            seen[layer]["inputs"].append(x.numpy().astype(np.float64))
            seen[layer]["scores"].append(s.numpy())
            seen[layer]["chosen"].append(chosen.numpy())
        return look

    for l, layer in enumerate(model.model.layers):
        layer.mlp.router.register_forward_pre_hook(keep(l))
    with torch.no_grad():
        for window in (ids[:16], ids[16:32]):
            model(torch.tensor([window]))
    layers = []
    for l in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{l}.mlp."
        layers.append({"weights": weight_measures(weights, prefix, routed),
                       "outputs": output_measures(weights, prefix, routed, *(np.concatenate(seen[l][k]) for k in ("inputs", "scores", "chosen")))})
    return {"layers": layers}


def main():
    out = HERE / "fixtures"
    out.mkdir(exist_ok=True)
    golden = {name: analyse(name) for name in ("tiny-cmoe-threshold", "tiny-cmoe-healed")}

    def rounded(value):
        if isinstance(value, dict):
            return {k: rounded(v) for k, v in value.items()}
        if isinstance(value, list):
            return [rounded(v) for v in value]
        return round(float(value), 7) if isinstance(value, (float, np.floating)) else int(value)

    (out / "golden.json").write_text(json.dumps(rounded(golden)) + "\n")
    print(out / "golden.json")


if __name__ == "__main__":
    main()

"""Makes tests/model/fixtures/tiny-cmoe-*: carved folders with random weights and their logits from the exported Python files.

    python tests/model/make_cmoe_golden.py

tiny-cmoe-threshold  linear router, threshold, compensation and expert bias; experts in bf16, router and biases in f32
tiny-cmoe-healed     analytical router, top-k, trained scale and selection bias, f32
tiny-cmoe-authors    the authors' router, top-k, no shared expert, bf16
tiny-cmoe-static     no routed expert: what the static baselines with a refit bias write, f32

A folder holds only config.json, model.safetensors, golden_ids.txt (one token a line) and golden_logits.f32 (little-endian f32
[tokens, vocabulary], computed in f32). The seed is one whose scores keep clear of their thresholds and of each other, so that
another order of summation chooses the same experts.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "peers"))
from check_modeling import VOCAB, config_json, random_weights, write_folder  # noqa: E402

FIXTURES = pathlib.Path(__file__).resolve().parent / "fixtures"
TOKENS = 32
MARGIN = 2e-4  # logits agree to about 1e-5, scores to less
CASES = {
    "threshold": ({"router_selector": "threshold", "compensation_bias": True, "expert_bias": True}, "mixed"),
    "healed": ({"router_type": "analytical", "router_scale": True, "router_selection_bias": True}, torch.float32),
    "authors": ({"router_type": "authors", "shared": 0, "routed": 6}, torch.bfloat16),
    "static": ({"shared": 6, "routed": 0, "compensation_bias": True}, torch.float32),
}


def stored(weights, dtype):
    """The tensors as they stand in the file."""
    if dtype == "mixed":
        keep = ("router.", "bias", "norm")
        return {k: v if any(word in k for word in keep) else v.to(torch.bfloat16) for k, v in weights.items()}
    return {k: v.to(dtype) for k, v in weights.items()}


def smallest_margin(model, ids):
    """The least distance between a score and what would have changed the set of experts."""
    margin = float("inf")

    def look(module, args):
        nonlocal margin
        s = module.scores(args[0])
        if module.selection_bias is not None:
            s = s + module.selection_bias
        if module.selector == "threshold":
            margin = min(margin, (s - module.threshold).abs().min().item())
        else:
            best = s.sort(-1, descending=True).values
            margin = min(margin, (best[:, module.num_active - 1] - best[:, module.num_active]).min().item())

    hooks = [layer.mlp.router.register_forward_pre_hook(look) for layer in model.model.layers if layer.mlp.router is not None]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    for hook in hooks:
        hook.remove()
    return margin, logits.numpy()


def main():
    for name, (moe, dtype) in CASES.items():
        folder = FIXTURES / f"tiny-cmoe-{name}"
        config = config_json(dict(moe))
        config["torch_dtype"] = "float32" if dtype == torch.float32 else "bfloat16"
        for seed in range(100):
            weights = stored(random_weights(config, seed), dtype)
            ids = np.random.default_rng(seed).integers(0, VOCAB, TOKENS).tolist()
            with tempfile.TemporaryDirectory() as scratch:
                # The reference runs in f32 on the values as stored.
                write_folder(pathlib.Path(scratch), {**config, "torch_dtype": "float32"},
                             {k: v.float() for k, v in weights.items()})
                model = AutoModelForCausalLM.from_pretrained(scratch, trust_remote_code=True).eval()
            margin, logits = smallest_margin(model, ids)
            if margin > MARGIN:
                break
        else:
            sys.exit(f"{name}: no seed keeps a margin of {MARGIN}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "golden_ids.txt").write_text("".join(f"{i}\n" for i in ids))
        (folder / "golden_logits.f32").write_bytes(np.ascontiguousarray(logits, dtype="<f4").tobytes())
        print(f"{folder.name}: seed {seed}, margin {margin:.1e}, abs max {np.abs(logits).max():.2f}")


if __name__ == "__main__":
    main()

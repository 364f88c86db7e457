"""The exported Python files against a plain per-token computation: every router, selector and option; round trip; generation.

    python tests/peers/check_modeling.py

Builds tiny carved folders with random weights, loads them as a user would (AutoModelForCausalLM, trust_remote_code) and
compares each layer's FFN with numpy in f64, one token at a time. Needs torch and transformers; takes seconds.
"""

import itertools
import json
import pathlib
import shutil
import sys
import tempfile

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

EXPORT = pathlib.Path(__file__).resolve().parents[2] / "src" / "model" / "export"
DTYPE = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
HIDDEN, SIZE, LAYERS, VOCAB, HEADS, KV_HEADS = 32, 8, 2, 61, 4, 2


def config_json(moe):
    """config.json of a tiny carved model; `moe` overrides the carved fields."""
    shared, routed = moe.pop("shared", 3), moe.pop("routed", 5)
    return {
        "architectures": ["CmoeForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_cmoe.CmoeConfig",
            "AutoModel": "modeling_cmoe.CmoeModel",
            "AutoModelForCausalLM": "modeling_cmoe.CmoeForCausalLM",
        },
        "model_type": "cmoe",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": SIZE * (shared + routed),
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCAB,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_experts": shared + routed,
        "num_shared_experts": shared,
        "num_experts_per_tok": min(3, routed),
        "moe_intermediate_size": SIZE,
        "router_type": "linear",
        "router_selector": "topk",
        "router_scale": False,
        "router_selection_bias": False,
        "compensation_bias": False,
        "expert_bias": False,
        **moe,
    }


def random_weights(config, seed):
    """Tensors of the folder by name, f32, as docs/formats.md lists them."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape, std=0.3):
        return torch.randn(*shape, generator=rng) * std

    head = HIDDEN // HEADS
    shared, routed = config["num_shared_experts"], config["num_experts"] - config["num_shared_experts"]
    out = {"model.embed_tokens.weight": normal(VOCAB, HIDDEN), "lm_head.weight": normal(VOCAB, HIDDEN)}
    out["model.norm.weight"] = 1 + normal(HIDDEN, std=0.1)
    for layer in range(LAYERS):
        p = f"model.layers.{layer}."
        out[p + "input_layernorm.weight"] = 1 + normal(HIDDEN, std=0.1)
        out[p + "post_attention_layernorm.weight"] = 1 + normal(HIDDEN, std=0.1)
        for name, rows, columns in (("q", HEADS * head, HIDDEN), ("k", KV_HEADS * head, HIDDEN),
                                    ("v", KV_HEADS * head, HIDDEN), ("o", HIDDEN, HEADS * head)):
            out[p + f"self_attn.{name}_proj.weight"] = normal(rows, columns)
        ffns = [(f"experts.{e}.", SIZE) for e in range(routed)]
        if shared:
            ffns.append(("shared_experts.", shared * SIZE))
        for name, size in ffns:
            out[p + "mlp." + name + "gate_proj.weight"] = normal(size, HIDDEN)
            out[p + "mlp." + name + "up_proj.weight"] = normal(size, HIDDEN)
            out[p + "mlp." + name + "down_proj.weight"] = normal(HIDDEN, size)
            if config["expert_bias"] and name != "shared_experts.":
                out[p + "mlp." + name + "down_proj.bias"] = normal(HIDDEN)
        if config["compensation_bias"]:
            out[p + "mlp.compensation.bias"] = normal(HIDDEN)
        if not routed:
            continue
        if config["router_type"] == "linear":
            out[p + "mlp.router.weight"] = normal(routed, HIDDEN)
            out[p + "mlp.router.bias"] = normal(routed)
        else:
            for name in ("gate_proj", "up_proj"):
                rows = normal(routed, HIDDEN)
                if config["router_type"] == "authors":
                    rows = rows / rows.norm(dim=1, keepdim=True)
                out[p + f"mlp.router.{name}.weight"] = rows
        if config["router_scale"]:
            out[p + "mlp.router.scale"] = normal(routed)
        if config["router_selection_bias"]:
            out[p + "mlp.router.selection_bias"] = normal(routed, std=0.5)
        if config["router_selector"] == "threshold":
            out[p + "mlp.router.threshold"] = normal(1, std=0.05)
    return out


def write_folder(folder, config, weights):
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("configuration_cmoe.py", "modeling_cmoe.py"):
        shutil.copy(EXPORT / name, folder / name)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def silu(z):
    return z / (1 + np.exp(-z))


def reference_ffn(x, w, prefix, config):
    """The carved FFN of one token x [d], f64, written from the definition; also the active experts."""
    def ffn(name):
        get = lambda proj: w[prefix + name + f"{proj}_proj.weight"]
        return get("down") @ (silu(get("gate") @ x) * (get("up") @ x))

    out = np.zeros(HIDDEN)
    if config["num_shared_experts"]:
        out += ffn("shared_experts.")
    if config["compensation_bias"]:
        out += w[prefix + "compensation.bias"]
    routed = config["num_experts"] - config["num_shared_experts"]
    if not routed:
        return out, []
    r = prefix + "router."
    if config["router_type"] == "linear":
        s = w[r + "weight"] @ x + w[r + "bias"]
    else:
        s = silu(w[r + "gate_proj.weight"] @ x) * (w[r + "up_proj.weight"] @ x)
        if config["router_type"] == "authors":
            s = np.abs(s)
    p = np.exp(s - s.max())
    p /= p.sum()
    chosen_by = s
    if config["router_selection_bias"]:
        chosen_by = s + w[r + "selection_bias"]
    if config["router_selector"] == "threshold":
        active = [j for j in range(routed) if chosen_by[j] >= w[r + "threshold"][0]]
    else:
        best = sorted(range(routed), key=lambda j: (-chosen_by[j], j))
        active = sorted(best[: config["num_experts_per_tok"]])
    for j in active:
        y = ffn(f"experts.{j}.")
        if config["expert_bias"]:
            y = y + w[prefix + f"experts.{j}.down_proj.bias"]
        out += y * (1 + p[j] * w[r + "scale"][j] if config["router_scale"] else 1)
    return out, active


def check_folder(folder, config, label):
    """Loads the folder and compares every layer's FFN on random rows; returns the worst absolute difference."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    w = {k: v.double().numpy() for k, v in model.state_dict().items()}
    x = torch.randn(3, 17, HIDDEN, generator=torch.Generator().manual_seed(7))
    worst, counts = 0.0, set()
    for layer in range(LAYERS):
        with torch.no_grad():
            got = model.model.layers[layer].mlp(x).reshape(-1, HIDDEN).double().numpy()
        for t, row in enumerate(x.reshape(-1, HIDDEN).double().numpy()):
            want, active = reference_ffn(row, w, f"model.layers.{layer}.mlp.", config)
            counts.add(len(active))
            worst = max(worst, float(np.abs(got[t] - want).max()))
    if not worst < 1e-4:
        sys.exit(f"{label}: FFN differs from the definition by {worst:.3g}, expected < 1e-4")
    if config["router_selector"] == "threshold" and len(counts) < 2 and config["num_experts"] > config["num_shared_experts"]:
        sys.exit(f"{label}: the threshold gave every token {counts} experts; the case tests nothing")

    ids = torch.randint(0, VOCAB, (2, 12), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits = model(ids).logits
        # A cache must not change the result: the same tokens one by one.
        cache, steps = None, []
        for t in range(ids.shape[1]):
            out = model(ids[:, t : t + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
        cached = (torch.cat(steps, 1) - logits).abs().max().item()
        text = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, min_new_tokens=5,
                              do_sample=False, pad_token_id=0)
        greedy = ids
        for _ in range(5):
            step = model(greedy).logits[:, -1]
            step[:, 2] = -float("inf")  # min_new_tokens holds the end token back
            greedy = torch.cat([greedy, step.argmax(-1, keepdim=True)], 1)
    if not cached < 1e-4:
        sys.exit(f"{label}: decoding with a cache differs by {cached:.3g}, expected < 1e-4")
    if not torch.equal(text, greedy):
        sys.exit(f"{label}: generate() differs from greedy decoding without a cache")

    again = folder.parent / (folder.name + "-again")
    model.save_pretrained(again)
    reloaded = AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True).eval()
    with torch.no_grad():
        if not torch.equal(reloaded(ids).logits, logits):
            sys.exit(f"{label}: logits change over save_pretrained and from_pretrained")
    for name in ("num_experts", "num_shared_experts", "num_experts_per_tok", "moe_intermediate_size", "router_type",
                 "router_selector", "router_scale", "router_selection_bias", "compensation_bias", "expert_bias"):
        if getattr(reloaded.config, name) != config[name]:
            sys.exit(f"{label}: config field {name} is {getattr(reloaded.config, name)}, expected {config[name]}")
    half = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **{DTYPE: torch.bfloat16})
    router = half.model.layers[0].mlp.router
    # transformers 4 keeps modules in f32 only when loading in f16.
    if DTYPE == "dtype" and router is not None and any(p.dtype != torch.float32 for p in router.state_dict().values()):
        sys.exit(f"{label}: the router left f32 when the model was loaded in bf16")
    half(ids)
    return worst


def check_training(folder, label):
    """Gradients reach every part of the FFN that trains, and none that does not."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).train()
    ids = torch.randint(0, VOCAB, (2, 12), generator=torch.Generator().manual_seed(3))
    model(ids, labels=ids).loss.backward()
    mlp = model.model.layers[0].mlp
    for name, parameter in mlp.named_parameters():
        if not parameter.requires_grad or name.endswith(("selection_bias", "threshold")):
            sys.exit(f"{label}: {name}: requires_grad is {parameter.requires_grad}; thresholds and selection bias alone do not train")
    for parameter in (mlp.shared_experts.down_proj.weight, mlp.compensation.bias, mlp.router.scale):
        if parameter.grad is None or not parameter.grad.abs().max() > 0:
            sys.exit(f"{label}: no gradient")


def check_dense(root):
    """The invariant: with every expert active and nothing compensated, the carved model is the dense one.

    The carved config spells RoPE the old way (rope_theta and rope_scaling) and the dense one in this transformers' own.
    """
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 16}
    config = config_json({"num_experts_per_tok": 5, "rope_scaling": scaling, "rope_theta": 500.0})
    weights = random_weights(config, seed=99)
    write_folder(root / "all-active", config, weights)
    carved = AutoModelForCausalLM.from_pretrained(root / "all-active", trust_remote_code=True).eval()
    fields = {k: config[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                                     "num_key_value_heads", "vocab_size", "max_position_embeddings", "rms_norm_eps")}
    if DTYPE == "dtype":
        fields["rope_parameters"] = {**scaling, "rope_theta": 500.0}
    else:
        fields.update(rope_scaling=scaling, rope_theta=500.0)
    dense = LlamaForCausalLM(LlamaConfig(**fields)).eval()
    joined = {k: v for k, v in weights.items() if ".mlp." not in k}
    for layer in range(LAYERS):
        p = f"model.layers.{layer}.mlp."
        parts = ["shared_experts."] + [f"experts.{e}." for e in range(5)]
        for proj, axis in (("gate_proj.weight", 0), ("up_proj.weight", 0), ("down_proj.weight", 1)):
            joined[p + proj] = torch.cat([weights[p + part + proj] for part in parts], axis)
    dense.load_state_dict(joined)
    ids = torch.randint(0, VOCAB, (2, 60), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        want = dense(ids).logits
        worst = ((carved(ids).logits - want).abs().max() / want.abs().max()).item()
    if not worst < 1e-5:
        sys.exit(f"with every expert active the logits differ from the dense model's by {worst:.3g}, expected < 1e-5")
    print(f"ok  {worst:.1e}  every expert active: the dense model")


def main():
    cases = []
    for kind, selector, extras in itertools.product(
        ("linear", "analytical", "authors"), ("topk", "threshold"), (False, True)
    ):
        flags = {name: extras for name in ("router_scale", "router_selection_bias", "compensation_bias", "expert_bias")}
        cases.append({"router_type": kind, "router_selector": selector, **flags})
    cases.append({"shared": 0, "routed": 4, "router_selector": "threshold"})
    cases.append({"shared": 6, "routed": 0, "compensation_bias": True})  # static baselines: no router at all
    with tempfile.TemporaryDirectory() as root:
        for number, moe in enumerate(cases):
            label = " ".join(f"{k}={v}" for k, v in moe.items())
            config = config_json(dict(moe))
            folder = pathlib.Path(root) / f"case-{number}"
            write_folder(folder, config, random_weights(config, seed=number))
            worst = check_folder(folder, config, label)
            if moe.get("router_scale"):
                check_training(folder, label)
            print(f"ok  {worst:.1e}  {label}")
        check_dense(pathlib.Path(root))
        fresh = AutoConfig.from_pretrained(pathlib.Path(root) / "case-1", trust_remote_code=True)
        model = AutoModelForCausalLM.from_config(fresh, trust_remote_code=True)
        if not all(torch.isfinite(p).all() for p in model.parameters()):
            sys.exit("a model from its config alone has weights that are not finite")


if __name__ == "__main__":
    main()

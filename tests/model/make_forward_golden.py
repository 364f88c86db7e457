"""Makes tests/model/fixtures/{tiny-llama,tiny-llama-scaled,text}: small models of our own and their logits from transformers.

    python tests/model/make_forward_golden.py

tiny-llama         trained here for a minute on sentences this script makes up, so that its FFNs have structure worth carving:
                   hidden 64, intermediate 160, 3 layers, 4/2 heads, tied head, vocabulary 384 (byte-level BPE with its
                   tokenizer.json and chat template), stored in bf16.
tiny-llama-scaled  random weights: untied head, Llama-3 RoPE scaling, head_dim other than hidden / heads, two shards, f32.
text               train.txt and valid.txt, the sentences; the model never saw the second.

Each model folder gets golden_ids.txt (one token a line) and golden_logits.f32 (little-endian f32 [tokens, vocabulary]), from
transformers in f32. Needs torch, transformers and tokenizers; the repository needs only what it writes.
"""

import pathlib
import random

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

FIXTURES = pathlib.Path(__file__).resolve().parent / "fixtures"
GOLDEN_TOKENS = 48
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def sentences(seed, size):
    """About `size` bytes of made-up prose with agreement, arithmetic and lists, a paragraph a line."""
    rng = random.Random(seed)
    people = ["Ada", "Bo", "Cleo", "Dan", "Eve", "Finn", "Gil", "Hana"]
    things = ["lamp", "river", "stone", "bridge", "garden", "letter", "engine", "window", "clock", "forest"]
    kinds = ["old", "green", "quiet", "narrow", "bright", "heavy", "small", "broken"]
    deeds = [("opens", "opened"), ("finds", "found"), ("paints", "painted"), ("carries", "carried"), ("draws", "drew")]
    places = ["by the sea", "in the north", "near the mill", "under the hill", "at the market"]

    def sentence():
        kind = rng.randrange(5)
        who, thing, adjective, place = rng.choice(people), rng.choice(things), rng.choice(kinds), rng.choice(places)
        now, then = rng.choice(deeds)
        if kind == 0:
            return f"{who} {now} the {adjective} {thing} {place}."
        if kind == 1:
            return f"Yesterday {who} {then} a {thing}, and today {who} {now} a {rng.choice(things)}."
        if kind == 2:
            a, b = rng.randrange(10), rng.randrange(10)
            return f"{a} plus {b} is {a + b}."
        if kind == 3:
            many = rng.randrange(2, 10)
            return f"There are {many} {adjective} {thing}s {place}; {who} counts them: " + ", ".join(
                str(i + 1) for i in range(many)) + "."
        return f"\"Where is the {thing}?\" asks {who}. \"The {thing} is {place},\" says {rng.choice(people)}."

    lines, total = [], 0
    while total < size:
        line = " ".join(sentence() for _ in range(rng.randrange(3, 8)))
        lines.append(line)
        total += len(line) + 1
    return "\n".join(lines) + "\n"


def make_tokenizer(text):
    """Byte-level BPE of 384 entries with SmolLM2's special tokens and digit splitting."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator(
        text.splitlines(keepends=True),
        trainers.BpeTrainer(vocab_size=384, special_tokens=[AddedToken(s, special=True) for s in special],
                            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>",
                                   pad_token="<|im_end|>", unk_token="<|endoftext|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def train(model, ids, steps=600, batch=16, length=64):
    """Adam on random windows: enough for the model to know the grammar."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    rng = torch.Generator().manual_seed(0)
    for step in range(steps):
        starts = torch.randint(0, len(ids) - length - 1, (batch,), generator=rng)
        x = torch.stack([ids[s : s + length] for s in starts])
        loss = model(x, labels=x).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)


def write_golden(folder, ids):
    """golden_ids.txt and golden_logits.f32 from the folder as saved."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).float().eval()
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].float().numpy()
    (folder / "golden_ids.txt").write_text("".join(f"{i}\n" for i in ids))
    (folder / "golden_logits.f32").write_bytes(np.ascontiguousarray(logits, dtype="<f4").tobytes())
    print(f"{folder.name}: logits {logits.shape}, abs max {np.abs(logits).max():.2f}")


def main():
    torch.manual_seed(0)
    text, held_out = sentences(1, 24000), sentences(2, 16000)
    (FIXTURES / "text").mkdir(parents=True, exist_ok=True)
    (FIXTURES / "text" / "train.txt").write_text(text)
    (FIXTURES / "text" / "valid.txt").write_text(held_out)

    folder = FIXTURES / "tiny-llama"
    tokenizer = make_tokenizer(text)
    tokenizer.save_pretrained(folder)
    encode = lambda t: tokenizer(t, return_tensors="pt").input_ids[0]
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=384, max_position_embeddings=256, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=2))
    train(model, encode(sentences(3, 400000)))
    model.to(torch.bfloat16).save_pretrained(folder)
    saved = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    x = encode(held_out)[:2048].reshape(-1, 128)
    with torch.no_grad():
        print(f"tiny-llama: held-out loss {saved(x, labels=x).loss.item():.3f} nats, {len(encode(held_out))} tokens")
    write_golden(folder, AutoTokenizer.from_pretrained(folder)(held_out).input_ids[:GOLDEN_TOKENS])

    folder = FIXTURES / "tiny-llama-scaled"
    # A small original_max_position_embeddings, so that the few frequencies of a small head fall on both sides of the ramp.
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=12,
        vocab_size=97, max_position_embeddings=512, rms_norm_eps=1e-6, tie_word_embeddings=False, initializer_range=0.2,
        rope_parameters={"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 64}))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder, max_shard_size="64KB")
    write_golden(folder, [int(i) for i in torch.randint(0, 97, (GOLDEN_TOKENS,))])


if __name__ == "__main__":
    main()

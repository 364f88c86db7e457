"""Makes tokenizer_golden.json: small tokenizers of every supported kind and what Hugging Face `tokenizers` does with them.

Run:  python make_tokenizer_golden.py   (needs the PyPI package tokenizers; 0.23.3 was used)
A variant is the base tokenizer with some top-level fields replaced, "model" member by member.
"""

import json
import pathlib

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "The ship sailed in the morning, and the crew sang all the way to the harbour.",
    "In 1987 there were 12 ships; in 2024 there are 365. It's what they'd said they'll do, isn't it?",
    "the the the there then them these those with within without and hand sand stand",
    "Größe, Übermut, naïve café, señor, Привет мир, 你好世界, こんにちは",
    "    def main(args):\n        return 0\n\n\nint x = 10;\t// tab\r\n",
    "sailing sailor sails sail morning mornings harbour harbours singing sing sang song songs",
] * 3

TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "\n\n\n  \t 12",
    "Hello world",
    " the ship",
    "The ship's sailor isn't IN THE harbour; he'LL come in 1987!",
    "a  b   c    d  1  22   333 4444 55555",
    "x=10;\r\n\r\n\ty += 2  // done  ",
    "Größe naïve cafe\u0301 \u212b \u1e9b\u0323 Привет, мир! 你好世界。こんにちは",
    "🙂👍🏽 é \u00a0nbsp\u2003em\u180emvs\u200bzw\u0085nel\u3000ideo",
    "½ ² ٣ ४ Ⅷ ㊿ 1½",
    "'s 'ſ 'S it's IT'S I'm I'LL we've you'd",
    "thethethethethethethethethethethethethethethethethethethethethethethe" * 3,
    "<s>the ship</s> and <|mark|>  harbour",
    "before  <|mark|>   after<|mark|><|mark|> <s> x<s>y",
    "word wordy sword word, aword word",
    "SAIL sail Sail  sail",
    "▁the▁ship ▁▁ ▁",
    "\u0000\u0001\u007f\ufeff\ufffd\U0010ffff",
    "don't-stop_me now... (really?!) [x] {y} a.b.c",
]

GPT2_SPLIT = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
QWEN_SPLIT = GPT2_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


def train(model, pre, normalizer, alphabet, size):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre
    if normalizer:
        tokenizer.normalizer = normalizer
    special = ["<unk>", "<s>", "</s>"]
    if not isinstance(pre, pre_tokenizers.ByteLevel):
        special += [f"<0x{b:02X}>" for b in range(256)]
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False))
    return json.loads(tokenizer.to_str())


def added(tokenizer, content, special, **flags):
    token = dict(id=tokenizer["next_id"], content=content, single_word=False, lstrip=False, rstrip=False,
                 normalized=not special, special=special)
    token.update(flags)
    tokenizer["next_id"] += 1
    return token


def byte_level(**options):
    return dict(dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True), **options)


def split(pattern, behavior, invert=False):
    return dict(type="Split", pattern=pattern, behavior=behavior, invert=invert)


def sequence(*steps):
    return dict(type="Sequence", pretokenizers=list(steps))


def template(before, after):
    def special(name):
        return {"SpecialToken": {"id": name, "type_id": 0}}
    ids = {"<s>": 1, "</s>": 2}
    single = [special(n) for n in before] + [{"Sequence": {"id": "A", "type_id": 0}}] + [special(n) for n in after]
    return dict(type="TemplateProcessing", single=single, pair=single + [{"Sequence": {"id": "B", "type_id": 1}}],
                special_tokens={n: dict(id=n, ids=[ids[n]], tokens=[n]) for n in before + after})


def main():
    base = train(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False), None,
                 pre_tokenizers.ByteLevel.alphabet(), 256 + 3 + 90)
    base["decoder"] = byte_level()
    base["post_processor"] = None
    base["model"]["merges"] = [list(m) if isinstance(m, list) else m.split(" ") for m in base["model"]["merges"]]
    specials = [t for t in base["added_tokens"] if t["content"] in ("<s>", "</s>")]
    base["added_tokens"] = specials
    count = {"next_id": len(base["model"]["vocab"])}
    flags = [
        added(count, "<|mark|>", True, lstrip=True, rstrip=True),
        added(count, "word", False, single_word=True),
        added(count, "ship", False, normalized=False),
        added(count, "shipping", False),
        added(count, " \u00c5", False),
        added(count, "  ", False, normalized=False),
    ]
    spm = train(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"),
                pre_tokenizers.Metaspace(prepend_scheme="always", split=True), None, [], 3 + 256 + 150)
    spm_model = spm["model"]
    spm_model["merges"] = [list(m) if isinstance(m, list) else m.split(" ") for m in spm_model["merges"]]
    spm_tokens = [t for t in spm["added_tokens"] if not t["content"].startswith("<0x")]
    spm_decoder = dict(type="Sequence", decoders=[
        dict(type="Replace", pattern={"String": "▁"}, content=" "), dict(type="ByteFallback"), dict(type="Fuse"),
        dict(type="Strip", content=" ", start=1, stop=0)])
    legacy = dict(type="Sequence", normalizers=[
        dict(type="Prepend", prepend="▁"), dict(type="Replace", pattern={"String": " "}, content="▁")])

    short = {k: v for k, v in base["model"]["vocab"].items() if k not in ("Ģ", "ģ", "Ľ", "Ń")}
    variants = {
        "byte level": {},
        "prefix space": {"pre_tokenizer": byte_level(add_prefix_space=True)},
        "digits": {"pre_tokenizer": sequence(dict(type="Digits", individual_digits=True), byte_level())},
        "digit runs": {"pre_tokenizer": sequence(dict(type="Digits", individual_digits=False), byte_level(use_regex=False))},
        "llama 3": {
            "pre_tokenizer": sequence(split({"Regex": GPT2_SPLIT}, "Isolated"), byte_level(use_regex=False)),
            "post_processor": dict(type="Sequence", processors=[byte_level(), template(["<s>"], [])]),
            "model": {"ignore_merges": True}},
        "qwen 2": {
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": sequence(split({"Regex": QWEN_SPLIT}, "Isolated"), byte_level(use_regex=False))},
        "bos and eos": {"post_processor": template(["<s>"], ["</s>"])},
        "added tokens": {"added_tokens": specials + flags},
        "added tokens, NFC": {"added_tokens": specials + flags, "normalizer": {"type": "NFC"}},
        "unknown token": {"model": {"vocab": short, "unk_token": "<unk>", "merges": []}},
        "unknown token fused": {"model": {"vocab": short, "unk_token": "<unk>", "fuse_unk": True, "merges": []}},
        "bytes missing": {"model": {"vocab": short, "merges": []}},
        "spm": {"model": spm_model, "added_tokens": spm_tokens, "normalizer": legacy, "pre_tokenizer": None, "decoder": spm_decoder,
                "post_processor": template(["<s>"], [])},
    }
    for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        for invert in (False, True):
            variants[f"split {behavior}{' inverted' if invert else ''}"] = {
                "pre_tokenizer": sequence(split({"Regex": r"[aeiou ]"}, behavior, invert), byte_level(use_regex=False))}
    variants["split string"] = {"pre_tokenizer": sequence(split({"String": "s?"}, "Isolated"), split({"String": "."}, "Removed"),
                                                          byte_level())}
    for scheme in ("always", "first", "never"):
        for cut in (True, False):
            variants[f"metaspace {scheme}{' cut' if cut else ''}"] = {
                "model": "spm", "added_tokens": "spm", "normalizer": None,
                "pre_tokenizer": dict(type="Metaspace", replacement="▁", prepend_scheme=scheme, split=cut),
                "decoder": dict(type="Metaspace", replacement="▁", prepend_scheme=scheme, split=cut)}

    cases = []
    for name, patch in variants.items():
        spec = dict(base)
        for key, value in patch.items():
            if value == "spm":
                value = spm_model if key == "model" else spm_tokens
            spec[key] = dict(base["model"], **value) if key == "model" else value
        tokenizer = Tokenizer.from_str(json.dumps(spec))
        rows = []
        for text in TEXTS:
            ids = tokenizer.encode(text).ids
            tokenizer.encode_special_tokens = True
            as_text = tokenizer.encode(text, add_special_tokens=False).ids
            tokenizer.encode_special_tokens = False
            row = dict(ids=ids, decoded=tokenizer.decode(ids, skip_special_tokens=False),
                       skipped=tokenizer.decode(ids, skip_special_tokens=True))
            plain = tokenizer.encode(text, add_special_tokens=False).ids
            if plain != ids:
                row["plain"] = plain
            if as_text != plain:
                row["as_text"] = as_text
            if row["skipped"] == row["decoded"]:
                del row["skipped"]
            if row["decoded"] == text:
                del row["decoded"]
            rows.append(row)
        cases.append(dict(name=name, patch=patch, rows=rows))
    del base["version"]
    golden = dict(base=base, spm=dict(model=spm_model, added_tokens=spm_tokens), texts=TEXTS, cases=cases)
    for case in cases:
        if case["patch"].get("model") is spm_model:
            case["patch"]["model"] = case["patch"]["added_tokens"] = "spm"
        if case["patch"].get("model", {}) != "spm" and "vocab" in case["patch"].get("model", {}):
            case["patch"]["model"]["vocab"] = "short"
    golden["short"] = short
    path = pathlib.Path(__file__).with_name("tokenizer_golden.json")
    parts = ",\n".join(f" {json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in golden.items())
    path.write_text("{\n" + parts.replace('{"name":', '\n  {"name":') + "\n}\n")
    print(len(cases), "tokenizers,", path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()

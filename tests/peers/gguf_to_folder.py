"""A GGUF file as a Hugging Face folder in f32, by transformers alone: the peer that cmoe's own reader is held against.

    python tests/peers/gguf_to_folder.py MODEL.gguf FOLDER

transformers reads GGUF but does not save a model that came from it, so the weights move into a fresh one.
"""

import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM


def main():
    source, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    arguments = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    model = AutoModelForCausalLM.from_pretrained(**arguments, dtype=torch.float32)
    fields = {k: v for k, v in model.config.to_dict().items() if k not in ("quantization_config", "model_type", "architectures")}
    fresh = LlamaForCausalLM(LlamaConfig(**fields)).float()
    fresh.load_state_dict(model.state_dict())
    fresh.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**arguments).save_pretrained(folder)


if __name__ == "__main__":
    main()

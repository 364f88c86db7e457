"""What the checks share: running cmoe, loading the peer, leaving with a message."""

import subprocess
import sys

import torch
from transformers import AutoModelForCausalLM


def run_cmoe(*arguments):
    """Standard output of one cmoe call; its messages and status end the check when it fails."""
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, arguments))}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def load_peer(folder):
    """The folder in f32 by transformers, with nothing but the files in it."""
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).float().eval()


def peer_logits(model, ids):
    """[tokens, vocabulary] f32 of one sequence."""
    with torch.no_grad():
        return model(torch.as_tensor(ids, dtype=torch.long)[None]).logits[0].float()

"""Writes dequantize_golden.txt with the `gguf` package: random blocks and what they decode to.

    python tests/tensor/make_dequantize_golden.py      (needs: pip install gguf numpy)

One line a block: type, the block's bytes in hexadecimal, the bits of the 32 f32 values in hexadecimal.
"""
import pathlib

import gguf
import numpy as np

rng = np.random.default_rng(7)
types = gguf.GGMLQuantizationType
lines = []
for kind in (types.Q8_0, types.Q4_0, types.Q4_1):
    for scale in (1e-6, 0.02, 1.0, 300.0):
        weights = (rng.standard_normal(32) * scale).astype(np.float32)
        block = gguf.quants.quantize(weights, kind)
        values = gguf.quants.dequantize(block, kind)
        lines.append(f"{kind.name} {block.tobytes().hex()} {values.astype('>f4').tobytes().hex()}")
half = rng.integers(0, 0x7C00, 32).astype(np.uint16) | (rng.integers(0, 2, 32).astype(np.uint16) << 15)
half[:2] = (1, 0x8000)  # the smallest subnormal, minus zero
lines.append(f"F16 {half.tobytes().hex()} {half.view(np.float16).astype('>f4').tobytes().hex()}")
pathlib.Path(__file__).with_name("dequantize_golden.txt").write_text("\n".join(lines) + "\n")

"""Makes crates/kernels/tests/data/blocks.bin: random blocks of every GGUF format with the weights
that the reference (the `gguf` Python package) finds in them, and random weights with the blocks that
it makes of them.

    python3 -m venv venv && venv/bin/pip install numpy gguf
    venv/bin/python tools/make_block_goldens.py

Layout: repeated records of u8 kind (0: blocks to weights, 1: weights to blocks), u8 length of the
type's name, the name, u32 bytes of the blocks, the blocks, u32 weights, the weights as f32.
"""

import pathlib
import struct

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

SCALES = {  # byte offsets of half-precision scales in a block
    "Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q2_K": [80, 82],
    "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0],
    "MXFP4": [],
}
EXTREMES = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0x3C00]

rng = np.random.default_rng(20240221)
out = bytearray()


def record(kind, name, blocks, weights):
    weights = np.ascontiguousarray(weights, np.float32).reshape(-1)
    blocks = bytes(np.ascontiguousarray(blocks).tobytes())
    out.extend(struct.pack("<BB", kind, len(name)) + name.encode())
    out.extend(struct.pack("<I", len(blocks)) + blocks)
    out.extend(struct.pack("<I", len(weights)) + weights.tobytes())


for name, places in SCALES.items():
    ty = T[name]
    length, size = GGML_QUANT_SIZES[ty]
    count = 6 if length == 256 else 20
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for i in range(count):
        for p in places:
            half = EXTREMES[i] if i < 4 else EXTREMES[(i + p) % 8] if i % 5 == 4 else rng.integers(0x1000, 0x4000)
            blocks[i, p : p + 2] = np.frombuffer(struct.pack("<H", int(half)), np.uint8)
    if name == "MXFP4":
        blocks[:, 0] = [0, 1, 2, 126, 127, 128, 254] + list(rng.integers(100, 140, count - 7))
    with np.errstate(all="ignore"):
        record(0, name, blocks, dequantize(blocks, ty))

for name in ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]:
    ty = T[name]
    weights = rng.standard_normal((12, 32)).astype(np.float32)
    weights[1] = 0
    weights[2] = 0.375
    weights[3] *= 1e-6
    weights[4] *= 1e4
    weights[5] = np.arange(32) - 8
    record(1, name, quantize(weights, ty), weights)

path = pathlib.Path(__file__).parent.parent / "crates/kernels/tests/data/blocks.bin"
path.write_bytes(out)
print(path, len(out))

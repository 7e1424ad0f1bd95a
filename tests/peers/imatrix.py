#!/usr/bin/env python3
"""A tiny importance matrix as llama.cpp writes them, by the GGUF specification.

    python tests/peers/imatrix.py tests/fixtures/imatrix/tiny.gguf

For tests/fixtures/stories260K: layer 0's attn_q and ffn_down, and a mixture of 4 experts that the model
does not have. Sums are i / 8 for entry i, counts 100 + 7 · expert.
"""
import struct, sys

import numpy as np


def text(s):
    return struct.pack("<Q", len(s)) + s.encode()


def pair(key, kind, payload):
    return text(key) + struct.pack("<I", kind) + payload


shapes = {
    "blk.0.attn_q.weight": (64, 1),
    "blk.0.ffn_down.weight": (172, 1),
    "blk.1.ffn_down_exps.weight": (172, 4),
}
tensors = []
for name, (n, experts) in shapes.items():
    tensors.append((name + ".in_sum2", (n, experts), np.arange(n * experts) / 8))
    tensors.append((name + ".counts", (1, experts), 100 + 7 * np.arange(experts)))

pairs = [
    pair("general.type", 8, text("imatrix")),
    pair("imatrix.datasets", 9, struct.pack("<IQ", 8, 1) + text("text.txt")),
    pair("imatrix.chunk_count", 4, struct.pack("<I", 5)),
    pair("imatrix.chunk_size", 4, struct.pack("<I", 20)),
]
header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs)
data = b""
for name, dims, values in tensors:
    header += text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
    header += struct.pack("<IQ", 0, len(data))
    raw = np.asarray(values, "<f4").tobytes()
    data += raw + bytes(-len(raw) % 32)
header += bytes(-len(header) % 32)
open(sys.argv[1], "wb").write(header + data)

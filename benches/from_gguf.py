#!/usr/bin/env python3
"""A Llama GGUF, quantized or not, as an f32 checkpoint: so that `hlrc-opt eval` judges a peer's file.

    python benches/from_gguf.py IN.gguf ORIGINAL_DIR OUT_DIR        (needs: numpy gguf)

config.json and the tokenizer are copied from the original. GGUF keeps the two halves of a rotary
pair beside each other; the checkpoint has all first halves first.
"""
import json, os, shutil, struct, sys
import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}


def hf_name(name):
    if name.startswith("blk."):
        _, layer, rest = name.split(".", 2)
        return f"model.layers.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"
    return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
            "output.weight": "lm_head.weight"}[name]


def main():
    source, original, out = sys.argv[1:4]
    c = json.load(open(os.path.join(original, "config.json")))
    heads = {"attn_q": c["num_attention_heads"], "attn_k": c["num_key_value_heads"]}
    os.makedirs(out, exist_ok=True)
    tensors = {}
    for t in GGUFReader(source).tensors:
        if t.name.startswith("rope_freqs"):
            continue
        w = dequantize(t.data, t.tensor_type).reshape([int(n) for n in reversed(t.shape)]).astype(np.float32)
        role = t.name.split(".")[-2]
        if role in heads:
            h = heads[role]
            w = w.reshape(h, w.shape[0] // h // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)
        tensors[hf_name(t.name)] = np.ascontiguousarray(w)
    header, offset = {}, 0
    for name, w in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(w.shape), "data_offsets": [offset, offset + w.nbytes]}
        offset += w.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(out, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for w in tensors.values():
            f.write(w.tobytes())
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        path = os.path.join(original, name)
        if os.path.exists(path):
            shutil.copyfile(path, os.path.join(out, name))


main()

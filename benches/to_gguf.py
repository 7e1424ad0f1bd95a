#!/usr/bin/env python3
"""A Llama checkpoint as a bf16 GGUF with weights and sizes only: enough input for llama-quantize.

    python benches/to_gguf.py CHECKPOINT_DIR OUT.gguf        (needs: numpy gguf)

There is no tokenizer in it, so that llama.cpp cannot run it. Rotary pairs lie beside each other, as
GGUF has them; from_gguf.py puts them back.
"""
import json, os, struct, sys
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name):
    if name.startswith("model.layers."):
        layer, rest = name[len("model.layers."):].split(".", 1)
        return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
            "lm_head.weight": "output.weight"}[name]


def main():
    source, out = sys.argv[1:3]
    c = json.load(open(os.path.join(source, "config.json")))
    heads = {"q_proj": c["num_attention_heads"], "k_proj": c["num_key_value_heads"]}
    path = os.path.join(source, "model.safetensors")
    with open(path, "rb") as f:
        size = struct.unpack("<Q", f.read(8))[0]
        header = json.loads(f.read(size))
    data = np.memmap(path, np.uint8, "r", offset=8 + size)
    w = GGUFWriter(out, "llama")
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_block_count(c["num_hidden_layers"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(c["num_key_value_heads"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_vocab_size(c["vocab_size"])
    for name, t in header.items():
        if name == "__metadata__":
            continue
        begin, end = t["data_offsets"]
        raw = np.array(data[begin:end])
        if len(t["shape"]) == 1:  # norms are f32 in GGUF
            values = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            w.add_tensor(gguf_name(name), values)
        else:
            shape = list(t["shape"][:-1]) + [t["shape"][-1] * 2]
            raw = raw.reshape(shape)
            h = heads.get(name.split(".")[-2])
            if h:
                raw = raw.reshape(h, 2, shape[0] // h // 2, -1).swapaxes(1, 2).reshape(shape)
            w.add_tensor(gguf_name(name), np.ascontiguousarray(raw), raw_dtype=GGMLQuantizationType.BF16)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


main()

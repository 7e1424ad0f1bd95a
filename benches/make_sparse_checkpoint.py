#!/usr/bin/env python3
"""A checkpoint of any apparent size in Llama-70B shapes, mostly holes, to measure memory and speed.

    python benches/make_sparse_checkpoint.py OUT_DIR LAYERS [FILLED_SHARDS=1]      (needs: numpy)

One shard per layer (855 M parameters, bf16), one for embeddings and head; the first FILLED_SHARDS
layers hold random normal values, the rest are holes that read as zeros. 115 layers are 100 billion
parameters, 200 GB apparent size, 1.7 GB on disk per filled shard.
"""
import json, os, struct, sys
import numpy as np

HIDDEN, FFN, KV, VOCAB = 8192, 28672, 1024, 128256


def layer(i):
    m = f"model.layers.{i}."
    return {
        m + "input_layernorm.weight": [HIDDEN], m + "post_attention_layernorm.weight": [HIDDEN],
        m + "self_attn.q_proj.weight": [HIDDEN, HIDDEN], m + "self_attn.k_proj.weight": [KV, HIDDEN],
        m + "self_attn.v_proj.weight": [KV, HIDDEN], m + "self_attn.o_proj.weight": [HIDDEN, HIDDEN],
        m + "mlp.gate_proj.weight": [FFN, HIDDEN], m + "mlp.up_proj.weight": [FFN, HIDDEN],
        m + "mlp.down_proj.weight": [HIDDEN, FFN],
    }


def shard(path, tensors, filled, rng):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        start = f.tell()
        if filled:
            for _ in range(0, offset, 2 << 24):
                chunk = min(1 << 24, (start + offset - f.tell()) // 2)
                if chunk <= 0:
                    break
                values = rng.standard_normal(chunk, dtype=np.float32) * np.float32(0.02)
                f.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
        f.truncate(start + offset)
    return offset


def main():
    out, layers = sys.argv[1], int(sys.argv[2])
    filled = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    os.makedirs(out, exist_ok=True)
    rng = np.random.default_rng(0)
    count, total, index = layers + 1, 0, {}
    ends = {"model.embed_tokens.weight": [VOCAB, HIDDEN], "model.norm.weight": [HIDDEN], "lm_head.weight": [VOCAB, HIDDEN]}
    for i in range(count):
        name = f"model-{i + 1:05}-of-{count:05}.safetensors"
        tensors = layer(i) if i < layers else ends
        total += shard(os.path.join(out, name), tensors, i < filled, rng)
        index.update({t: name for t in tensors})
    with open(os.path.join(out, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {"total_size": total}, "weight_map": index}, f)
    with open(os.path.join(out, "config.json"), "w") as f:
        json.dump({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": layers,
            "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": VOCAB, "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0, "max_position_embeddings": 131072, "tie_word_embeddings": False,
        }, f)
    print(f"{out}: {total / 2e9:.1f} billion parameters, {total / 1e9:.0f} GB apparent")


main()

#!/usr/bin/env python3
"""A tiny random Mixtral, written as ONNX by the tool, against numpy.

usage: native_onnx.py HLRC_OPT

Covers RMS norm, rotary embedding, grouped queries, a sliding window, a
mixture of experts, and rotations folded into all of these. Needs numpy, onnx and onnxruntime.
"""
import json, math, os, struct, subprocess, sys, tempfile

import numpy as np
import onnx
import onnxruntime as ort

H, I, E, V, HEADS, KV, D, WINDOW, LAYERS = 32, 48, 4, 100, 4, 2, 8, 4, 2
CONFIG = dict(architectures=["MixtralForCausalLM"], model_type="mixtral", hidden_size=H,
              intermediate_size=I, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
              num_key_value_heads=KV, vocab_size=V, num_local_experts=E, num_experts_per_tok=2,
              rms_norm_eps=1e-5, rope_theta=1e4, max_position_embeddings=64, hidden_act="silu",
              tie_word_embeddings=False, sliding_window=WINDOW)


def weights(rng):
    shapes = {"model.embed_tokens": (V, H), "model.norm": (H,), "lm_head": (V, H)}
    for layer in range(LAYERS):
        p = f"model.layers.{layer}."
        shapes |= {p + "input_layernorm": (H,), p + "post_attention_layernorm": (H,),
                   p + "self_attn.q_proj": (HEADS * D, H), p + "self_attn.k_proj": (KV * D, H),
                   p + "self_attn.v_proj": (KV * D, H), p + "self_attn.o_proj": (H, HEADS * D),
                   p + "block_sparse_moe.gate": (E, H)}
        for e in range(E):
            q = p + f"block_sparse_moe.experts.{e}."
            shapes |= {q + "w1": (I, H), q + "w2": (H, I), q + "w3": (I, H)}
    scale = lambda s: 0.3 if len(s) > 1 else 1.0
    return {k: (rng.standard_normal(s) * scale(s)).astype(np.float32) for k, s in shapes.items()}


def save_file(tensors, path):
    header, data = {}, b""
    for name, array in tensors.items():
        end = len(data) + array.nbytes
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [len(data), end]}
        data += array.tobytes()
    header = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header + data)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def reference(w, ids):
    batch, length = ids.shape
    steps = np.arange(length)

    def rms(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w[name]

    def rope(x, heads):
        x = x.reshape(batch, length, heads, D)
        angle = steps[:, None] * 1e4 ** (-np.arange(0, D, 2) / D)
        c, s = np.cos(angle)[None, :, None], np.sin(angle)[None, :, None]
        a, b = x[..., :D // 2], x[..., D // 2:]
        return np.concatenate([a * c - b * s, b * c + a * s], -1)

    x = w["model.embed_tokens"][ids]
    seen = (steps[None] <= steps[:, None]) & (steps[None] > steps[:, None] - WINDOW)
    for layer in range(LAYERS):
        p = f"model.layers.{layer}."
        h = rms(x, p + "input_layernorm")
        q = rope(h @ w[p + "self_attn.q_proj"].T, HEADS)
        k = rope(h @ w[p + "self_attn.k_proj"].T, KV)
        v = (h @ w[p + "self_attn.v_proj"].T).reshape(batch, length, KV, D)
        k, v = (np.repeat(t, HEADS // KV, 2) for t in (k, v))
        scores = np.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(D)
        mixed = np.einsum("bhqk,bkhd->bqhd", softmax(np.where(seen, scores, -1e30)), v)
        x = x + mixed.reshape(batch, length, -1) @ w[p + "self_attn.o_proj"].T
        h = rms(x, p + "post_attention_layernorm")
        shares = softmax(h @ w[p + "block_sparse_moe.gate"].T)
        top = np.argsort(-shares, -1)[..., :2]
        chosen = np.zeros_like(shares)
        np.put_along_axis(chosen, top, np.take_along_axis(shares, top, -1), -1)
        chosen /= chosen.sum(-1, keepdims=True)
        for e in range(E):
            q = p + f"block_sparse_moe.experts.{e}."
            gate = h @ w[q + "w1"].T
            inner = gate / (1 + np.exp(-gate)) * (h @ w[q + "w3"].T)
            x = x + chosen[..., e:e + 1] * (inner @ w[q + "w2"].T)
    return rms(x, "model.norm") @ w["lm_head"].T


def with_cache(folder, ids):
    """Logits of 3 tokens, then 1, then the rest, each with the keys and values of those before."""
    out = os.path.join(folder, "cached.onnx")
    subprocess.run([sys.argv[1], folder, "-o", out, "-q", "--onnx-cache"], check=True)
    onnx.checker.check_model(out, full_check=True)
    session = ort.InferenceSession(out)
    names = [o.name for o in session.get_outputs()]
    past = {i.name: np.zeros((len(ids), KV, 0, D), np.float32)
            for i in session.get_inputs() if i.name != "input_ids"}
    logits = []
    for start, end in ((0, 3), (3, 4), (4, ids.shape[1])):
        results = dict(zip(names, session.run(None, {"input_ids": ids[:, start:end], **past})))
        logits.append(results["logits"])
        past = {k.replace("present", "past_key_values"): v
                for k, v in results.items() if k.startswith("present")}
        assert all(v.shape == (len(ids), KV, end, D) for v in past.values())
    return np.concatenate(logits, 1)


def main():
    rng = np.random.default_rng(3)
    w = weights(rng)
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "out.onnx")
        save_file({k + ".weight": v for k, v in w.items()}, os.path.join(folder, "model.safetensors"))
        json.dump(CONFIG, open(os.path.join(folder, "config.json"), "w"))
        subprocess.run([sys.argv[1], folder, "-o", out, "-q"], check=True)
        onnx.checker.check_model(out, full_check=True)
        ids = rng.integers(0, V, (2, 7))
        want = reference({k: v.astype(np.float64) for k, v in w.items()}, ids)
        got = ort.InferenceSession(out).run(None, {"input_ids": ids})[0]
        error = np.abs(got - want).max() / np.abs(want).max()
        print(f"worst relative difference {error:.2e}")
        turned = os.path.join(folder, "turned.onnx")
        subprocess.run([sys.argv[1], folder, "-p", "fold-rotations", "-o", turned, "-q"], check=True)
        onnx.checker.check_model(turned, full_check=True)
        got = ort.InferenceSession(turned).run(None, {"input_ids": ids})[0]
        turned_error = np.abs(got - want).max() / np.abs(want).max()
        print(f"worst relative difference with folded rotations {turned_error:.2e}")
        cached = with_cache(folder, ids)
        cached_error = np.abs(cached - want).max() / np.abs(want).max()
        print(f"worst relative difference with a cache {cached_error:.2e}")
        sys.exit(0 if max(error, cached_error, turned_error) < 1e-5 else 1)


main()

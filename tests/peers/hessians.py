#!/usr/bin/env python3
"""Second moments of linear inputs, by numpy in f64: a decoder of the Llama family from its formulas.

    python tests/peers/hessians.py MODEL_FOLDER STATS TOKENS.json [LAYERS]

TOKENS.json is a list of windows of token ids, those that `hlrc-opt calibrate` ran on. Compares every
matrix, diagonal and count in STATS (those of LAYERS, as `0,7`, and of what is in no layer) and prints
the worst relative error, of the Frobenius norm of a matrix. Shares no code with the tool.
"""
import json, struct, sys

import numpy as np

KINDS = {"F32": "<f4", "F16": "<f2", "U64": "<u8", "BF16": "<u2"}


def tensors(path):
    with open(path, "rb") as f:
        size = struct.unpack("<Q", f.read(8))[0]
        header = json.loads(f.read(size))
    data = np.memmap(path, np.uint8, "r", 8 + size)
    out = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        a, b = info["data_offsets"]
        raw = np.frombuffer(data[a:b].tobytes(), KINDS[info["dtype"]])
        if info["dtype"] == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        out[name] = raw.reshape(info["shape"])
    return header.get("__metadata__", {}), out


def norm(x, w, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w


def rope(x, theta):
    s, _, d = x.shape
    freq = theta ** (-np.arange(0, d, 2) / d)
    angle = np.arange(s)[:, None] * freq
    c, n = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = x[..., : d // 2], x[..., d // 2:]
    return np.concatenate([a * c - b * n, b * c + a * n], -1)


def moments(folder, windows, wanted):
    c = json.load(open(folder + "/config.json"))
    _, w = tensors(folder + "/model.safetensors")
    w = {k: v.astype(np.float64) for k, v in w.items()}
    heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
    d = c.get("head_dim") or c["hidden_size"] // heads
    theta, eps = c.get("rope_theta", 10000.0), c["rms_norm_eps"]
    found = {}

    def linear(name, x):
        layer = name.split(".")[2] if ".layers." in name else None
        if layer is None or not wanted or int(layer) in wanted:
            found[name] = found.get(name, 0) + x.T @ x
        return x @ w[name + ".weight"].T if name + ".weight" in w else None

    for ids in windows:
        x = w["model.embed_tokens.weight"][ids]
        s = len(ids)
        mask = np.triu(np.full((s, s), -np.inf), 1)
        for i in range(c["num_hidden_layers"]):
            p = f"model.layers.{i}."
            h = norm(x, w[p + "input_layernorm.weight"], eps)
            q = rope(linear(p + "self_attn.q_proj", h).reshape(s, heads, d), theta)
            k = rope(linear(p + "self_attn.k_proj", h).reshape(s, kv, d), theta)
            v = linear(p + "self_attn.v_proj", h).reshape(s, kv, d)
            k, v = (np.repeat(t, heads // kv, 1) for t in (k, v))
            a = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(d) + mask
            a = np.exp(a - a.max(-1, keepdims=True))
            a /= a.sum(-1, keepdims=True)
            o = np.einsum("hqk,khd->qhd", a, v).reshape(s, heads * d)
            x = x + linear(p + "self_attn.o_proj", o)
            h = norm(x, w[p + "post_attention_layernorm.weight"], eps)
            g = linear(p + "mlp.gate_proj", h)
            g = g / (1 + np.exp(-g)) * linear(p + "mlp.up_proj", h)
            x = x + linear(p + "mlp.down_proj", g)
        linear("lm_head", norm(x, w["model.norm.weight"], eps))
    return found


def main(folder, stats, tokens, layers=""):
    windows = json.load(open(tokens))
    meta, t = tensors(stats)
    sites = json.loads(meta["hlrc_calibration"])["sites"]
    wanted = {int(n) for n in layers.split(",") if n}
    worst, compared = 0.0, 0
    for name, h in moments(folder, windows, wanted).items():
        site = name if name in sites else "model.embed_tokens"
        (key,) = sites[site]["inputs"]
        n = len(h)
        full = np.zeros((n, n))
        full[np.triu_indices(n)] = t[key + ".hessian"]
        full = full + np.triu(full, 1).T
        assert t[key + ".tokens"][0] == sum(map(len, windows)), name
        worst = max(worst, np.linalg.norm(full - h) / np.linalg.norm(h))
        worst = max(worst, np.abs(t[key + ".diag"] / h.diagonal() - 1).max())
        compared += 1
    print(json.dumps({"compared": compared, "worst": worst}))


main(*sys.argv[1:])

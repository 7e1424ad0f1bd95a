#!/usr/bin/env python3
"""GPTQ, the best low-rank term in the metric of the inputs, and both by turns, by numpy in f64.

    python tests/peers/metric.py FOLDER

FOLDER holds task.json (rows, n, damp, bits, order, rank, turns) and little-endian f32 matrices: w.f32 `[rows, n]`,
h.f32 `[n, n]`, and per weight scale.f32, zero.f32 `[rows, n]`. Writes gptq.f32 (what the codes decode to) and
low_rank.f32 (the term for w), and prints both objectives, damped, as JSON. GPTQ goes through the upper Cholesky
factor of the inverse, column by column; the low-rank term through the symmetric root; turns round to the nearest
half and solve the term again for what that loses. Shares no code with the tool.
"""
import json, sys
from pathlib import Path

import numpy as np

folder = Path(sys.argv[1])
task = json.loads((folder / "task.json").read_text())
rows, n = task["rows"], task["n"]


def load(name, *shape):
    return np.fromfile(folder / f"{name}.f32", "<f4").astype(np.float64).reshape(shape)


w, h = load("w", rows, n), load("h", n, n)
scale, zero = load("scale", rows, n), load("zero", rows, n)
dead = h.diagonal() == 0
h[dead, dead] = h.diagonal()[~dead].mean()
h += task["damp"] * h.diagonal().mean() * np.eye(n)

order = np.argsort(-h.diagonal(), kind="stable") if task["order"] else np.arange(n)[::-1]
upper = np.linalg.cholesky(np.linalg.inv(h[np.ix_(order, order)])).T
rest, gptq = w[:, order].copy(), np.zeros((rows, n))
for j, column in enumerate(order):
    s, z = scale[:, column], zero[:, column]
    code = np.clip(np.rint(rest[:, j] / s + z), task["low"], 2 ** task["bits"] - 1)
    gptq[:, column] = (code - z) * s
    rest[:, j:] -= np.outer((rest[:, j] - gptq[:, column]) / upper[j, j], upper[j, j:])

values, vectors = np.linalg.eigh(h)
root, inverse = (vectors * values**0.5) @ vectors.T, (vectors * values**-0.5) @ vectors.T


def term(e):
    u, s, v = np.linalg.svd(e @ root, full_matrices=False)
    r = task["rank"]
    return (u[:, :r] * s[:r]) @ (v[:r] @ inverse)


low_rank = term(w)


def objective(e):
    return float(((e @ h) * e).sum())


gptq.astype("<f4").tofile(folder / "gptq.f32")
low_rank.astype("<f4").tofile(folder / "low_rank.f32")
turns, taken = [], np.zeros_like(w)
for _ in range(task["turns"]):
    coded = np.floor((w - taken) * 2 + 0.5) / 2
    taken = term(w - coded)
    turns.append(objective(w - coded - taken))
print(json.dumps({"turns": turns, "gptq": objective(w - gptq), "low_rank": objective(w - low_rank), "whole": objective(w)}))

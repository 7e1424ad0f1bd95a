#!/usr/bin/env python3
"""Runs the transformer ops of a text module in numpy, in f64, sharing no code with the tool.

    python tests/peers/interpret.py MODULE.hlir EXPECTED.safetensors [TOLERANCE]
        MODULE, printed by `hlrc-opt MODEL -S -o MODULE.hlir` or inside an .hlrc folder, makes of the
        inputs in EXPECTED the outputs in EXPECTED (see tests/fixtures/families/make.py)

Needs: numpy onnx onnxruntime. Prints the greatest relative error; exits 1 above TOLERANCE (1e-4).
"""
import json, math, os, re, struct, sys
import numpy as np

from crosscheck import Folder, INLINE, WEIGHT, rotation, split, unquote

OP = re.compile(r'^(%\S+) = (\w+)(.*)$')
REGION = re.compile(r'region "[^"]*"\((%\S+) : [^)]*\) -> \((%\S+)\) \{$')
DTYPES = {"F16": np.float16, "F32": np.float32, "I64": np.int64}


def safetensors(path):
    with open(path, "rb") as f:
        size, = struct.unpack("<Q", f.read(8))
        header, data = json.loads(f.read(size)), f.read()
    found = {}
    for name, t in header.items():
        if name != "__metadata__":
            start, end = t["data_offsets"]
            found[name] = np.frombuffer(data[start:end], DTYPES[t["dtype"]]).reshape(t["shape"])
    return found


class Module(Folder):
    """Weights of a text module, and its lines."""

    def __init__(self, path):
        self.path, self.weights, self.lines, self.outputs = os.path.dirname(path), {}, [], []
        for line in open(path, encoding="utf-8"):
            if m := WEIGHT.match(line):
                name, dtype, dims, file, offset, size = m.groups()
                self.weights[unquote(name)] = (dtype, [int(d) for d in dims.split(",") if d], file, int(offset, 16), int(size))
            elif m := INLINE.match(line):
                name, dtype, dims, data = m.groups()
                self.weights[unquote(name)] = (dtype, [int(d) for d in dims.split(",") if d], None, bytes.fromhex(data), 0)
            elif "graph @main" in line:
                inside = line.rsplit("-> (", 1)[1].split(")")[0]
                self.outputs = inside.split(", ")
            else:
                self.lines.append(line.strip())

    def weight(self, name):
        return self.read(name).astype(np.float64)

    def term(self, text, out, inp):
        if not text.startswith("dense("):
            return super().term(text, out, inp)
        args = split(text[6:-1], ", ")
        w = self.weight(args[0])
        for arg in args[1:]:
            if arg.startswith("index="):
                w = w[int(arg[6:])]
        return w.T if "transposed" in args else w

    def matrix_of(self, rest):
        out, inp = map(int, re.search(r"\[(\d+),(\d+)\]", rest).groups())
        terms = re.search(r"\] \{ (.*?) \}", rest).group(1)
        return sum(self.term(t, out, inp) for t in split(terms, " + "))


def rope(x, positions, a):
    heads, dim, turned = a["heads"], a["head_dim"], a["rotary_dim"]
    theta, s, factor = a["theta"], a.get("scaling"), 1.0
    i = np.arange(0, turned, 2) / turned
    if s and s["type"] == "dynamic":
        length = max(positions.max() + 1, s["original_context"])
        theta *= (s["factor"] * length / s["original_context"] - (s["factor"] - 1)) ** (turned / (turned - 2))
    f = theta ** -i
    if s and s["type"] == "linear":
        f = f / s["factor"]
    if s and s["type"] == "llama3":
        rotations = s["original_context"] * f / (2 * math.pi)
        low, high = s["low_freq_factor"], s["high_freq_factor"]
        keep = np.clip((rotations - low) / (high - low), 0, 1)
        f = f * keep + f / s["factor"] * (1 - keep)
    if s and s["type"] == "yarn":
        at = lambda n: turned * math.log(s["original_context"] / (n * 2 * math.pi)) / (2 * math.log(theta))
        low, high = max(math.floor(at(s["beta_fast"])), 0), min(math.ceil(at(s["beta_slow"])), turned - 1)
        ramp = np.clip((np.arange(turned // 2) - low) / (high - low or 0.001), 0, 1)
        f = f / s["factor"] * ramp + f * (1 - ramp)
        factor = s["attention_factor"]
    angle = positions[:, :, None, None] * f
    cos, sin = np.cos(angle) * factor, np.sin(angle) * factor
    x = x.reshape(*x.shape[:2], heads, dim).copy()
    h = turned // 2
    pairs = (slice(0, turned, 2), slice(1, turned, 2)) if a.get("interleaved") else (slice(0, h), slice(h, turned))
    p, q = x[..., pairs[0]].copy(), x[..., pairs[1]].copy()
    x[..., pairs[0]], x[..., pairs[1]] = p * cos - q * sin, q * cos + p * sin
    return x.reshape(*x.shape[:2], heads * dim)


def attention(q, k, v, mask, a):
    (b, s, _), heads, kv, dim = q.shape, a["heads"], a["kv_heads"], a["head_dim"]
    q = q.reshape(b, s, heads, dim).transpose(0, 2, 1, 3)
    k, v = (t.reshape(b, s, kv, dim).transpose(0, 2, 1, 3).repeat(heads // kv, 1) for t in (k, v))
    scores = q @ k.swapaxes(2, 3) * a["scale"]
    if cap := a.get("softcap"):
        scores = cap * np.tanh(scores / cap)
    at = np.arange(s)
    seen = np.ones((s, s), bool)
    if a["causal"]:
        seen &= at[None] <= at[:, None]
    if window := a.get("window"):
        seen &= at[None] > at[:, None] - window
    seen = np.broadcast_to(seen, (b, 1, s, s))
    if mask is not None:
        seen = seen & (mask[:, None, None] != 0)
    p = softmax(np.where(seen, scores, -np.inf))
    return (p @ v).transpose(0, 2, 1, 3).reshape(b, s, heads * dim)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def activate(x, name):
    erf = np.vectorize(math.erf)
    return {
        "silu": lambda: x / (1 + np.exp(-x)), "relu": lambda: np.maximum(x, 0), "tanh": lambda: np.tanh(x),
        "gelu": lambda: x * (1 + erf(x / math.sqrt(2))) / 2,
        "gelu_tanh": lambda: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3))) / 2,
    }[name]()


def rms_norm(x, gain, a):
    shape, width = x.shape, a.get("slice") or x.shape[-1]
    x = x.reshape(*shape[:-1], -1, width)
    x = x / np.sqrt((x ** 2).mean(-1, keepdims=True) + a["eps"]) * (gain + (1 if a.get("unit_offset") else 0))
    return x.reshape(shape)


def hadamard(x, a):
    r = rotation(x.shape[-1], a["block"], a["seed"])
    return x @ (r if a.get("inverse") else r.T)


def attributes(text):
    """`{eps=0.05, scaling={type="yarn"}}` as a dictionary."""
    found = re.search(r"\{(.*)\}", text)
    if not found:
        return {}
    return json.loads("{" + re.sub(r"(\w+)\s*=", r'"\1":', found.group(1)) + "}")


class Run:
    def __init__(self, module, values):
        self.m, self.values = module, values

    def lines(self, lines):
        at = 0
        while at < len(lines):
            if m := OP.match(lines[at]):
                result, op, rest = m.groups()
                if op == "moe":
                    end = next(i for i in range(at, len(lines)) if lines[i].startswith("}]"))
                    self.values[result] = self.moe(lines[at], lines[at:end + 1])
                    at = end
                else:
                    self.values[result] = self.op(op, rest)
            at += 1

    def moe(self, head, lines):
        names = re.search(r"moe (%\S+), (%\S+) \{top_k=(\d+), normalize=(\w+)\}", head).groups()
        x, logits = self.values[names[0]], self.values[names[1]]
        width, top_k = x.shape[-1], int(names[2])
        tokens, p = x.reshape(-1, width), softmax(logits.reshape(-1, logits.shape[-1]))
        chosen = np.argsort(-p, -1)[:, :top_k]
        weight = np.take_along_axis(p, chosen, -1)
        if names[3] == "true":
            weight = weight / weight.sum(-1, keepdims=True)
        out, expert, at = np.zeros_like(tokens), -1, 0
        for i, line in enumerate(lines):
            if m := REGION.search(line):
                inside = Run(self.m, {m.group(1): tokens})
                end = next(j for j in range(i + 1, len(lines)) if lines[j].startswith("}"))
                inside.lines(lines[i + 1:end])
                expert += 1
                share = (weight * (chosen == expert)).sum(-1, keepdims=True)
                out += share * inside.values[m.group(2)]
        assert expert + 1 == p.shape[-1], "as many regions as experts"
        return out.reshape(x.shape)

    def op(self, op, rest):
        if op in ("linear", "embedding"):
            x, w = self.values[rest.split()[0]], self.m.matrix_of(rest)
            if op == "embedding":
                return w[x]
            bias = re.search(r"bias\((@\S+)\)", rest)
            return x @ w.T + (self.m.weight(bias.group(1)) if bias else 0)
        a = attributes(re.sub(r' name\(".*$', "", rest))
        x, *args = [self.operand(o) for o in rest.split(" {")[0].split(" name(")[0].strip().split(", ")]
        return {
            "rms_norm": lambda: rms_norm(x, args[0], a),
            "layer_norm": lambda: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + a["eps"]) * args[0] + args[1],
            "rope": lambda: rope(x, args[0], a),
            "attention": lambda: attention(x, *args, a),
            "activate": lambda: activate(x, a["function"]),
            "add": lambda: x + args[0],
            "mul": lambda: x * args[0],
            "scale": lambda: x * (args[0] if args else a["factor"]),
            "softcap": lambda: a["cap"] * np.tanh(x / a["cap"]),
            "hadamard": lambda: hadamard(x, a),
            "slice": lambda: x[..., a["start"]:a["start"] + a["width"]],
            "positions": lambda: np.broadcast_to(np.arange(x.shape[1]), x.shape),
            "first_token": lambda: x[:, 0],
        }[op]()

    def operand(self, text):
        if text == "_":
            return None
        return self.values[text] if text.startswith("%") else self.m.weight(text)


def main(path, expected, tolerance=1e-4):
    module, given = Module(path), safetensors(expected)
    run = Run(module, {f"%{n}": v for n, v in given.items() if v.dtype == np.int64})
    run.lines(module.lines)
    worst, compared = 0.0, [name for name in module.outputs if name[1:] in given]
    assert compared, f"{expected} has none of {module.outputs}"
    for name in compared:
        want, have = given[name[1:]].astype(np.float64), run.values[name]
        worst = max(worst, np.abs(have - want).max() / np.abs(want).max(), np.linalg.norm(have - want) / np.linalg.norm(want))
    print(f"{path}: relative error {worst:.2e} of {', '.join(n[1:] for n in compared)}")
    return worst <= float(tolerance)


if __name__ == "__main__":
    sys.exit(0 if main(*sys.argv[1:]) else 1)

#!/usr/bin/env python3
"""Compares an exported ONNX model with a float model of the same terms.

usage: check_onnx.py SOURCE.onnx OUT.hlrc OUT.onnx [tolerance]

Reads the terms of every linear from the .hlrc directory with numpy alone, sets
their sum as the weight of the node of the same name in the source, and runs
both models in ONNX Runtime on the same random inputs. Needs numpy, onnx and
onnxruntime. Exits with 1 where outputs differ by more than the tolerance
(relative to the largest output), or where onnx.checker refuses the model.
"""
import json, os, re, struct, sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U32": "<u4",
          "U16": "<u2", "U8": "u1", "I8": "i1"}


def tensors(folder):
    found = {}
    for name in sorted(os.listdir(folder)):
        if not name.endswith(".safetensors"):
            continue
        raw = open(os.path.join(folder, name), "rb").read()
        size = struct.unpack("<Q", raw[:8])[0]
        for key, info in json.loads(raw[8:8 + size]).items():
            if key == "__metadata__":
                continue
            a, b = info["data_offsets"]
            if info["dtype"] == "BF16":
                bits = np.frombuffer(raw[8 + size + a:8 + size + b], "<u2").astype("<u4") << 16
                data = bits.view("<f4")
            else:
                data = np.frombuffer(raw[8 + size + a:8 + size + b], DTYPES[info["dtype"]])
            found[key] = data.reshape(info["shape"])
    return found


def unpack(packed, bits, rows, count):
    """Little-endian bit stream per row."""
    stream = np.unpackbits(np.frombuffer(packed.tobytes(), np.uint8).reshape(rows, -1), axis=1,
                           bitorder="little")
    fields = stream[:, :count * bits].reshape(rows, count, bits).astype(np.int64)
    return (fields << np.arange(bits)).sum(2)


def dequant(codes, scales, zeros, bits, group, rows, cols):
    q = unpack(codes, bits, rows, cols)
    s = scales.astype(np.float64).reshape(-1)
    if group == "column":
        z = 2 ** (bits - 1) if zeros is None else unpack(zeros, bits, 1, cols)
        return (q - z) * s[None, :]
    width = cols if group == "row" else int(group)
    groups = -(-cols // width)
    z = 2 ** (bits - 1) * np.ones((rows, groups)) if zeros is None else unpack(zeros, bits, rows, groups)
    spread = lambda m: np.repeat(m.reshape(rows, groups), width, 1)[:, :cols]
    return (q - spread(z)) * spread(s)


def split_args(text):
    parts, depth, start, quoted = [], 0, 0, False
    for i, c in enumerate(text):
        quoted ^= c == '"'
        if not quoted:
            depth += c in "([{"
            depth -= c in ")]}"
            if c == "," and depth == 0:
                parts.append(text[start:i].strip())
                start = i + 1
    return parts + [text[start:].strip()]


def calls(text):
    """name(arguments) + name(arguments) ..."""
    found, i = [], 0
    while m := re.match(r"\s*\+?\s*([a-z_0-9]+)\(", text[i:]):
        start = i + m.end()
        depth, j, quoted = 1, start, False
        while depth:
            quoted ^= text[j] == '"'
            depth += (not quoted) and text[j] == "("
            depth -= (not quoted) and text[j] == ")"
            j += 1
        found.append((m[1], split_args(text[start:j - 1])))
        i = j
    return found


def factor(text, data, blocks, is_u):
    m = re.match(r"(int8|int4|f16|f32)\((.*)\)$", text)
    names = [n.strip().lstrip("@").strip('"') for n in (split_args(m[2]) if m else [text])]
    flat, out, at, scale_at = data(names[0]).reshape(-1), [], 0, 0
    for _, rows, _, cols, rank in blocks:
        n, k = (rows, rank) if is_u else (rank, cols)
        if not m or m[1][0] == "f":
            out.append(flat[at:at + n * k].astype(np.float64).reshape(n, k))
            at += n * k
            continue
        bits = int(m[1][3:])
        group = ("row" if is_u else "64") if bits == 8 else "32"
        groups = 1 if group == "row" else -(-k // int(group))
        size = n * -(-k * bits // 8)
        scales = data(names[1]).reshape(-1)[scale_at:scale_at + n * groups]
        out.append(dequant(flat[at:at + size], scales, None, bits, group, n, k))
        at, scale_at = at + size, scale_at + n * groups
    return out


def term(kind, args, data, rows, cols):
    w = np.zeros((rows, cols))
    plain = [a.lstrip("@").strip('"') for a in args]
    if kind == "dense":
        d = data(plain[0]).astype(np.float64)
        return d.T if "transposed" in plain else d.reshape(rows, cols)
    if kind == "quant":
        bits = int(re.search(r"int(\d)", " ".join(args[2:]))[1])
        group = next(a.split("=")[1] for a in args if a.startswith("group="))
        zeros = next((data(a.split("@")[1].strip('"')) for a in args if a.startswith("zeros=")), None)
        if zeros is None and plain[2] in data.names:
            zeros = data(plain[2])
        return dequant(data(plain[0]), data(plain[1]), zeros, bits, group, rows, cols)
    if kind == "low_rank":
        spec = next((a for a in args if a.startswith("blocks=")), None)
        if spec:
            blocks = [tuple(map(int, b)) for b in
                      re.findall(r"\((\d+)\+(\d+), (\d+)\+(\d+), r=(\d+)\)", spec)]
        else:
            rank = int(next(a for a in args if a.startswith("r="))[2:])
            blocks = [(0, rows, 0, cols, rank)]
        us, vs = factor(args[0], data, blocks, True), factor(args[1], data, blocks, False)
        for (r0, n, c0, m, _), u, v in zip(blocks, us, vs):
            w[r0:r0 + n, c0:c0 + m] += u @ v
        return w
    if kind == "sparse":
        values, columns, offsets = (data(p) for p in plain[:3])
        for r in range(rows):
            w[r, columns[offsets[r]:offsets[r + 1]]] = values[offsets[r]:offsets[r + 1]]
        return w
    if kind == "columns":
        w[:, data(plain[0])] = data(plain[1]).reshape(rows, -1)
        return w
    raise SystemExit(f"unknown term {kind}")


class Data:
    def __init__(self, folder):
        self.names = tensors(folder)

    def __call__(self, name):
        return self.names[name]


def feeds(session, rng):
    out = {}
    for value in session.get_inputs():
        shape = [d if isinstance(d, int) else {0: 2}.get(i, 8) for i, d in enumerate(value.shape)]
        if "int64" in value.type:
            low, high = (1, 2) if "mask" in value.name else (0, 500)
            out[value.name] = rng.integers(low, high, shape)
        else:
            out[value.name] = rng.standard_normal(shape).astype(np.float32)
    return out


def main():
    source, folder, exported = sys.argv[1:4]
    tolerance = float(sys.argv[4]) if len(sys.argv) > 4 else 1e-4
    model = onnx.load(source)
    nodes = {n.name: n for n in model.graph.node}
    data, changed = Data(folder), 0
    weights = {i.name: i for i in model.graph.initializer}
    for line in open(os.path.join(folder, "module.hlir")):
        m = re.search(r" = (linear|embedding) .*? \[(\d+),(\d+)\] \{ (.*?) \}(?= |$)", line)
        if not m:
            continue
        name = re.search(r' name\((?:"([^"]*)"|([^)]*))\)', line)
        name = (name[1] or name[2]) if name else ""
        parts = calls(m[4])
        rows, cols = int(m[2]), int(m[3])
        if [p[0] for p in parts] == ["dense"] or name not in nodes:
            continue
        w = sum((term(kind, args, data, rows, cols) for kind, args in parts), np.zeros((rows, cols)))
        node = nodes[name]
        slot = 0 if node.op_type == "Gather" else 1
        stored = weights.get(node.input[slot])
        like = numpy_helper.to_array(stored) if stored is not None else np.zeros((cols, rows), np.float32)
        flip = node.op_type == "MatMul" or (node.op_type == "Gemm" and not any(
            a.name == "transB" and a.i for a in node.attribute))
        array = (w.T if flip else w).astype(like.dtype)
        fresh = f"reference_{changed}"
        model.graph.initializer.append(numpy_helper.from_array(array.reshape(like.shape if stored is not None else array.shape), fresh))
        node.input[slot] = fresh
        changed += 1
    reference = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    options = ort.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    actual = ort.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
    onnx.checker.check_model(exported, full_check=True)
    inputs = feeds(reference, np.random.default_rng(0))
    worst = 0.0
    for a, b in zip(reference.run(None, inputs), actual.run(None, inputs)):
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise SystemExit("an output is not finite")
        worst = max(worst, float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)))
    print(f"{changed} linears, worst relative difference {worst:.2e}")
    sys.exit(0 if changed and worst <= tolerance else 1)


main()

#!/usr/bin/env python3
"""Checks rewritten ONNX models against ONNX Runtime and numpy, sharing no code with the tool.

    python tests/peers/crosscheck.py same SOURCE.onnx COPY.onnx
        both models give bit-identical outputs, and onnx.checker's full check passes on the copy
    python tests/peers/crosscheck.py terms SOURCE.onnx OUT.hlrc REWRITTEN.onnx [TOLERANCE]
        REWRITTEN equals, in ONNX Runtime, a float model whose weights are the sums of the terms in
        OUT.hlrc, decoded here by the layout that docs/format.md describes

Needs: numpy onnx onnxruntime. Prints one line; exits 1 where a check fails.
"""
import os, re, sys
import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

DTYPES = {"u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "f16": np.float16, "f32": np.float32}
WEIGHT = re.compile(r'^\s*weight @("(?:[^"\\]|\\.)*"|[^\s:]+) : (\w+)\[([\d,]*)\] = file\("([^"]*)", (0x[0-9a-f]+), (\d+)\)')
INLINE = re.compile(r'^\s*weight @("(?:[^"\\]|\\.)*"|[^\s:]+) : (\w+)\[([\d,]*)\] = hex"([0-9a-f]*)"')
LINEAR = re.compile(r' = (linear|embedding) \S+ \[(\d+),(\d+)\] \{ (.*) \}(.*)$')
NAME = re.compile(r'name\("((?:[^"\\]|\\.)*)"\)')


def unquote(text):
    return text[1:-1] if text.startswith('"') else text


class Folder:
    """Weights and linears of a .hlrc folder."""

    def __init__(self, path):
        self.path, self.weights, self.linears = path, {}, {}
        for line in open(os.path.join(path, "module.hlir"), encoding="utf-8"):
            if m := WEIGHT.match(line):
                name, dtype, dims, file, offset, size = m.groups()
                self.weights[unquote(name)] = (dtype, [int(d) for d in dims.split(",") if d], file, int(offset, 16), int(size))
            elif m := INLINE.match(line):
                name, dtype, dims, data = m.groups()
                self.weights[unquote(name)] = (dtype, [int(d) for d in dims.split(",") if d], None, bytes.fromhex(data), 0)
            elif m := LINEAR.search(line):
                _, out, inp, terms, rest = m.groups()
                if n := NAME.search(rest):
                    self.linears[n.group(1)] = (int(out), int(inp), terms)

    def read(self, name):
        dtype, dims, file, offset, size = self.weights[unquote(name.lstrip("@"))]
        if file is None:
            return np.frombuffer(offset, DTYPES[dtype]).reshape(dims)
        with open(os.path.join(self.path, file), "rb") as f:
            f.seek(offset)
            return np.frombuffer(f.read(size), DTYPES[dtype]).reshape(dims)

    def matrix(self, name):
        """The sum of the terms, in f64; None where the matrix is the source's own."""
        out, inp, terms = self.linears[name]
        if re.fullmatch(r"dense\(.*\)", terms) and "low_rank" not in terms and " + " not in terms:
            return None
        total = np.zeros((out, inp))
        for term in split(terms, " + "):
            total += self.term(term, out, inp)
        return total

    def term(self, text, out, inp):
        kind, args = re.fullmatch(r"(\w+)\((.*)\)", text).groups()
        args = split(args, ", ")
        if kind == "dense":
            w = self.read(args[0]).astype(np.float64)
            return w.reshape(inp, out).T if "transposed" in args else w.reshape(out, inp)
        if kind == "quant":
            return self.quant(args, out, inp)
        if kind == "sparse":
            values, columns, offsets = (self.read(a) for a in args[:3])
            w = np.zeros((out, inp))
            rows = np.repeat(np.arange(out), np.diff(offsets.astype(np.int64)))
            w[rows, columns.astype(np.int64)] = values
            return w
        if kind == "columns":
            columns, values = self.read(args[0]), self.read(args[1])
            w = np.zeros((out, inp))
            w[:, columns] = values
            return w
        assert kind == "low_rank", kind
        return self.low_rank(args, out, inp)

    def quant(self, args, out, inp):
        if m := re.fullmatch(r"rotate\(out=(\d+), in=(\d+), seed=(\d+)\)", args[-1]):
            a, b, seed = map(int, m.groups())
            w = self.quant(args[:-1], out, inp)
            return rotation(out, a, seed ^ 0x6F75747075740A0D).T @ w @ rotation(inp, b, seed)
        names = [a for a in args if a.startswith("@")]
        bits = int(re.fullmatch(r"int(\d)", args[-2]).group(1))
        group = args[-1].removeprefix("group=")
        q = unpack(self.read(names[0]).reshape(out, -1), bits, inp).astype(np.float64)
        s = self.read(names[1]).astype(np.float64)
        if group == "column":
            z = unpack(self.read(names[2]).reshape(1, -1), bits, inp)[0] if len(names) > 2 else 2 ** (bits - 1)
            return (q - z) * s.reshape(1, inp)
        size = inp if group == "row" else int(group)
        groups = -(-inp // size)
        s = np.repeat(s.reshape(out, groups), size, axis=1)[:, :inp]
        z = 2 ** (bits - 1)
        if len(names) > 2:
            z = unpack(self.read(names[2]).reshape(out, -1), bits, groups)
            z = np.repeat(z, size, axis=1)[:, :inp].astype(np.float64)
        return (q - z) * s

    def low_rank(self, args, out, inp):
        if m := re.fullmatch(r"r=(\d+)", args[2]):
            blocks = [(0, out, 0, inp, int(m.group(1)))]
        else:
            found = re.findall(r"\((\d+)\+(\d+), (\d+)\+(\d+), r=(\d+)\)", ", ".join(args[2:]))
            blocks = [tuple(map(int, b)) for b in found]
        u = self.factor(args[0], [(b[1], b[4]) for b in blocks], {8: None, 4: 32})
        v = self.factor(args[1], [(b[4], b[3]) for b in blocks], {8: 64, 4: 32})
        w = np.zeros((out, inp))
        for (r0, rows, c0, cols, _), ub, vb in zip(blocks, u, v):
            w[r0:r0 + rows, c0:c0 + cols] += ub @ vb
        return w

    def factor(self, text, shapes, groups):
        kind, names = re.fullmatch(r"(\w+)\((.*)\)", text).groups()
        names = split(names, ", ")
        data, parts, at, scale_at = self.read(names[0]).reshape(-1), [], 0, 0
        scales = self.read(names[1]).reshape(-1).astype(np.float64) if len(names) > 1 else None
        for rows, cols in shapes:
            if scales is None:
                parts.append(data[at:at + rows * cols].astype(np.float64).reshape(rows, cols))
                at += rows * cols
                continue
            bits = int(kind.removeprefix("int"))
            size = groups[bits] or max(cols, 1)
            row_bytes, count = -(-cols * bits // 8), -(-cols // size)
            q = unpack(data[at:at + rows * row_bytes].reshape(rows, row_bytes), bits, cols).astype(np.float64)
            s = scales[scale_at:scale_at + rows * count].reshape(rows, count)
            parts.append((q - 2 ** (bits - 1)) * np.repeat(s, size, axis=1)[:, :cols])
            at, scale_at = at + rows * row_bytes, scale_at + rows * count
        return parts


def split(text, separator):
    """Splits at the separator where no bracket is open."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "([") - (c in ")]")
        if depth == 0 and text.startswith(separator, i):
            parts.append(text[start:i])
            start = i + len(separator)
    return parts + [text[start:]]


def rotation(n, block, seed):
    """H·diag(signs): Walsh–Hadamard blocks, signs from the bits of splitmix64."""
    if block == 1:
        return np.eye(n)
    mask, signs, state = 2 ** 64 - 1, [], seed
    for _ in range(-(-n // 64)):
        state = z = (state + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
        z ^= z >> 31
        signs += [-1.0 if z >> i & 1 else 1.0 for i in range(64)]
    h = np.ones((1, 1))
    while len(h) < block:
        h = np.block([[h, h], [h, -h]])
    return np.kron(np.eye(n // block), h / np.sqrt(block)) * np.array(signs[:n])


def unpack(rows, bits, count):
    """b-bit fields from the low bits up, a row at a time."""
    stream = np.unpackbits(rows, axis=1, bitorder="little")[:, :count * bits]
    return stream.reshape(rows.shape[0], count, bits) @ (1 << np.arange(bits))


def inputs_of(session):
    rng = np.random.default_rng(7)
    feeds = {}
    for i in session.get_inputs():
        dims = [2 if k == 0 else (d if isinstance(d, int) and d > 0 else 16) for k, d in enumerate(i.shape)]
        if i.shape and isinstance(i.shape[0], int):
            dims[0] = i.shape[0]
        if "int64" in i.type:
            high = 2 if "mask" in i.name else 1 if "type" in i.name else 500
            feeds[i.name] = rng.integers(0, high, dims) if high < 3 else rng.integers(1, high, dims)
            if "mask" in i.name:
                feeds[i.name] = np.ones(dims, np.int64)
            if i.name == "sr":
                feeds[i.name] = np.array(16000, np.int64)
        else:
            feeds[i.name] = rng.standard_normal(dims).astype(np.float32)
    return feeds


def vad_shapes(feeds, session):
    """silero-vad fixes its sizes outside the graph's types."""
    names = {i.name for i in session.get_inputs()}
    if {"input", "state"} <= names:
        rng = np.random.default_rng(7)
        feeds["input"] = rng.standard_normal((1, 576)).astype(np.float32)
        feeds["state"] = np.zeros((2, 1, 128), np.float32)
    return feeds


def session(path, optimize=True):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def same(source, copy):
    onnx.checker.check_model(copy, full_check=True)
    a, b = session(source), session(copy)
    candidates = [inputs_of(a), vad_shapes(inputs_of(a), a)]
    for index, feeds in enumerate(candidates):
        try:
            x, y = a.run(None, feeds), b.run(None, feeds)
        except Exception as e:  # the first guess of shapes may not fit
            if index + 1 == len(candidates):
                raise
            continue
        for name, p, q in zip([o.name for o in a.get_outputs()], x, y):
            if np.asarray(p).tobytes() != np.asarray(q).tobytes():
                sys.exit(f"{copy}: output {name} differs")
        identical = open(source, "rb").read() == open(copy, "rb").read()
        print(f"{os.path.basename(source)}: outputs bit-identical, checker passes, file {'byte-identical' if identical else 'differs'}")
        return


def float_twin(source, folder, path):
    """The source with every rewritten linear's weight replaced by the sum of its terms."""
    model = onnx.load(source)
    initializers = {i.name: i for i in model.graph.initializer}
    replaced = 0
    for node in model.graph.node:
        if node.name not in folder.linears:
            continue
        w = folder.matrix(node.name)
        if w is None:
            continue
        at = next(k for k, n in enumerate(node.input) if n in initializers)
        old = initializers[node.input[at]]
        transpose = node.op_type == "MatMul" and at == 1
        transpose |= node.op_type == "Gemm" and not any(a.name == "transB" and a.i for a in node.attribute)
        new = (w.T if transpose else w).astype(np.float32).reshape(list(old.dims))
        name = f"{node.name}.sum"
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(new), name))
        node.input[at] = name
        replaced += 1
    onnx.save(model, path)
    return replaced


def terms(source, out, rewritten, tolerance):
    folder = Folder(out)
    twin = rewritten + ".twin.onnx"
    replaced = float_twin(source, folder, twin)
    if replaced == 0:
        sys.exit(f"{out}: no rewritten linear matches a node of {source}")
    a, b = session(twin), session(rewritten)
    feeds = inputs_of(a)
    worst = 0.0
    for p, q in zip(a.run(None, feeds), b.run(None, feeds)):
        if np.issubdtype(np.asarray(p).dtype, np.floating):
            p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
            worst = max(worst, np.linalg.norm(p - q) / max(np.linalg.norm(p), 1e-30))
    os.remove(twin)
    line = f"{os.path.basename(source)}: {replaced} linears, relative difference {worst:.2e}"
    if not worst <= tolerance:
        sys.exit(f"{line}, above {tolerance:g}")
    print(line)


if __name__ == "__main__":
    what, args = sys.argv[1], sys.argv[2:]
    if what == "same":
        same(*args)
    else:
        terms(*args[:3], float(args[3]) if len(args) > 3 else 1e-4)

#!/usr/bin/env python3
"""Compares inferred shapes with onnx.shape_inference and with a run of ONNX Runtime.

usage: shapes.py MODEL.onnx SHAPES.tsv

SHAPES.tsv has one value per line: name, element type, dimensions (`[1|S|64]`, `*` where the rank is
not known, `?` for what is not). Fails where a rank, a known size or an element type differs from
what the package infers or from what a run makes, or where one text stands for two sizes in a run.
Prints coverage. Needs numpy, onnx and onnxruntime.
"""
import collections, os, re, sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto as T

TYPES = {"f32": T.FLOAT, "f64": T.DOUBLE, "f16": T.FLOAT16, "bf16": T.BFLOAT16, "i64": T.INT64, "i32": T.INT32,
         "i16": T.INT16, "i8": T.INT8, "u8": T.UINT8, "u16": T.UINT16, "u32": T.UINT32, "u64": T.UINT64, "bool": T.BOOL, "string": T.STRING}


def ours(path):
    table, twice = {}, set()
    for line in open(path, encoding="utf-8"):
        name, dtype, dims = line.rstrip("\n").split("\t")
        if name in table:
            twice.add(name)
        dims = None if dims == "*" else [d for d in dims[1:-1].split("|") if d]
        table[name] = (TYPES.get(dtype), dims)
    return {name: known for name, known in table.items() if name not in twice}


def graphs(graph):
    yield graph
    for node in graph.node:
        for attr in node.attribute:
            if attr.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attr.g)


def theirs(model):
    table = {}
    for graph in graphs(onnx.shape_inference.infer_shapes(model, data_prop=True).graph):
        for info in [*graph.value_info, *graph.output, *graph.input]:
            kind = info.type.tensor_type
            dims = None
            if kind.HasField("shape"):
                dims = [str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim]
            table[info.name] = (kind.elem_type or None, dims)
    return table


def whole(dims):
    return dims is not None and all(re.fullmatch(r"\d+", d) for d in dims)


def run(model, sizes):
    """Every value of the main graph, by a run whose named input dimensions have these sizes."""
    feed, rng = {}, np.random.default_rng(1)
    initial = {i.name for i in model.graph.initializer}
    for value in model.graph.input:
        if value.name in initial:
            continue
        kind = value.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else sizes(d.dim_param) for d in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if value.name == "sr":
            feed[value.name] = np.full(shape, 16000, dtype)
        elif np.issubdtype(dtype, np.integer):
            feed[value.name] = (np.zeros if "type" in value.name else np.ones)(shape, dtype)
        else:
            feed[value.name] = rng.standard_normal(shape).astype(dtype)
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    have = {o.name for o in probe.graph.output}
    for node in model.graph.node:
        probe.graph.output.extend(onnx.ValueInfoProto(name=o) for o in node.output if o and o not in have)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return {**feed, **dict(zip(names, session.run(None, feed)))}


def value_of(text, bound):
    """The size that a text says, where all its names are bound."""
    try:
        return eval(text, {"__builtins__": {}}, {**bound, "min": min})
    except Exception:
        return None


def main():
    path, table = sys.argv[1], ours(sys.argv[2])
    model, faults = onnx.load(path), []
    other = theirs(model)
    both = collections.Counter()
    for name, (dtype, dims) in table.items():
        peer_type, peer = other.get(name, (None, None))
        both["values"] += 1
        both["ranks"] += dims is not None
        both["whole shapes"] += whole(dims)
        both["theirs: ranks"] += peer is not None
        both["theirs: whole shapes"] += whole(peer)
        if dtype and peer_type and dtype != peer_type:
            faults.append(f"{name}: element type {dtype}, onnx says {peer_type}")
        if dims is None or peer is None:
            continue
        sure = lambda d: re.fullmatch(r"\d+", d)
        if len(dims) != len(peer) or any(sure(a) and sure(b) and a != b for a, b in zip(dims, peer)):
            faults.append(f"{name}: {dims}, onnx says {peer}")
        both["sizes that onnx has and we lack"] += sum(1 for a, b in zip(dims, peer) if sure(b) and not sure(a))
    seen = 0
    for attempt in range(3):
        # Different sizes for different names; audio comes in windows.
        given = {}
        audio = "silero" in os.path.basename(path)

        def size(name):
            return given.setdefault(name, 1 if audio and "batch" in name else 512 if audio else 2 + 3 * attempt + len(given))

        try:
            made = run(model, size)
        except Exception as problem:
            print(f"no run: {str(problem)[:160]}")
            break
        bound = dict(given)
        for name, array in made.items():
            dtype, dims = table.get(name, (None, None))
            if array is None or not hasattr(array, "shape"):
                continue
            if dtype and onnx.helper.np_dtype_to_tensor_dtype(array.dtype) != dtype:
                faults.append(f"{name}: element type {dtype}, a run makes {array.dtype}")
            if dims is None:
                continue
            seen += 1
            if len(dims) != array.ndim:
                faults.append(f"{name}: {dims}, a run makes {array.shape}")
                continue
            for text, real in zip(dims, array.shape):
                want = value_of(text, bound)
                if want is None and text != "?":
                    want = bound.setdefault(text, real)
                if want is not None and want != real:
                    faults.append(f"{name}: {dims}, a run makes {array.shape} ({text} is {want})")
    print(", ".join(f"{k} {v}" for k, v in both.items()) + f"; compared with runs: {seen}")
    for fault in faults[:20]:
        print("FAIL", fault)
    sys.exit(1 if faults else 0)


main()

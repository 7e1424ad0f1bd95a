#!/usr/bin/env python3
"""Every spelling of a linear that exporters use, through the tool and back.

usage: spellings.py HLRC_OPT [--onnx-quant=qdq]

Builds one small model per spelling, rewrites it with a full-rank `lowrank` in
f32 (exact up to rounding) and with `int8`, and compares outputs in ONNX
Runtime with the source's. Needs numpy, onnx and onnxruntime.
"""
import os, subprocess, sys, tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto as T, helper as h, numpy_helper as nh

rng = np.random.default_rng(7)
K, N = 48, 40


def tensor(name, array):
    return nh.from_array(np.ascontiguousarray(array), name)


def weight(rows, cols, dtype=np.float32):
    return (rng.standard_normal((rows, cols)) / np.sqrt(cols)).astype(dtype)


def model(nodes, inits, x_shape=("B", 6, K), y="y", opset=17, x_type=T.FLOAT, y_type=T.FLOAT, rank=None):
    x = h.make_tensor_value_info("x", x_type, x_shape)
    out = h.make_tensor_value_info(y, y_type, [f"d{i}" for i in range(rank or len(x_shape))])
    graph = h.make_graph(nodes, "g", [x], [out], inits)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=8 if opset < 21 else 10)


def cases():
    w, b = tensor("w", weight(K, N)), tensor("b", rng.standard_normal(N).astype(np.float32))
    wt = tensor("wt", weight(N, K))
    node = h.make_node
    yield "matmul", model([node("MatMul", ["x", "w"], ["y"])], [w])
    yield "matmul_add", model([node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["y"])], [w, b])
    yield "add_first", model([node("MatMul", ["x", "w"], ["m"]), node("Add", ["b", "m"], ["y"])], [w, b])
    left = model([node("MatMul", ["wt", "x"], ["y"])], [wt], ("B", K, 6))
    yield "left", left
    yield "left_inferred", model([node("Relu", ["x"], ["r"]), node("Concat", ["r", "x"], ["c"], axis=2), node("MatMul", ["wt", "c"], ["y"])], [wt], ("B", K, 6))
    yield "left_2d", model([node("MatMul", ["wt", "x"], ["y"])], [wt], (K, 6))
    yield "transpose", model([node("Transpose", ["wt"], ["t"], perm=[1, 0]), node("MatMul", ["x", "t"], ["y"])], [wt])
    yield "identity", model([node("Identity", ["w"], ["i"]), node("MatMul", ["x", "i"], ["y"])], [w])
    half = tensor("h", weight(K, N, np.float16))
    yield "cast", model([node("Cast", ["h"], ["c"], to=T.FLOAT), node("MatMul", ["x", "c"], ["y"])], [half])
    yield "half", model([node("MatMul", ["x", "h"], ["y"])], [half], x_type=T.FLOAT16, y_type=T.FLOAT16)
    yield "constant", model([node("Constant", [], ["c"], value=tensor("", weight(K, N))), node("MatMul", ["x", "c"], ["y"])], [])
    for trans, array in ((0, w), (1, wt)):
        for alpha in (1.0, 0.5):
            yield f"gemm_{trans}_{alpha}", model([node("Gemm", ["x", array.name, "b"], ["y"], transB=trans, alpha=alpha)], [array, b], ("B", K))
    yield "gemm_trans_a", model([node("Gemm", ["x", "w", "b"], ["y"], transA=1)], [w, b], (K, 6))
    yield "gemm_beta", model([node("Gemm", ["x", "w", "b"], ["y"], beta=0.25)], [w, b], ("B", K))
    yield "gemm_scalar", model([node("Gemm", ["x", "w", "c"], ["y"], beta=0.25)], [w, tensor("c", np.float32(2))], ("B", K))
    full = tensor("c", rng.standard_normal((3, N)).astype(np.float32))
    yield "gemm_matrix", model([node("Gemm", ["x", "w", "c"], ["y"])], [w, full], (3, K))
    yield "gemm_no_bias", model([node("Gemm", ["x", "wt"], ["y"], transB=1)], [wt], ("B", K))
    for axes in (1, 2):
        c = tensor("c", weight(N, K).reshape(N, K, *[1] * axes))
        yield f"conv{axes}d", model([node("Conv", ["x", "c", "b"], ["y"])], [c, b], ("B", K, *[5] * axes))
    q = rng.integers(-127, 128, (K, N)).astype(np.int8)
    s = (rng.random(N) / 500).astype(np.float32)
    dq = lambda axis, scale, zero=None: [node("DequantizeLinear", ["q", "s"] + (["z"] if zero is not None else []), ["d"], axis=axis), node("MatMul", ["x", "d"], ["y"])]
    yield "dequantize_axis", model(dq(1, s), [tensor("q", q), tensor("s", s)])
    u, z = (q.astype(np.int16) + 128).clip(0, 255).astype(np.uint8), np.uint8(120)
    yield "dequantize_tensor", model(dq(0, s, z), [tensor("q", u), tensor("s", np.float32(0.003)), tensor("z", z)])
    blocked = [node("DequantizeLinear", ["q", "s"], ["d"], axis=0, block_size=16), node("MatMul", ["x", "d"], ["y"])]
    yield "dequantize_blocked", model(blocked, [tensor("q", q), tensor("s", (rng.random((3, N)) / 500).astype(np.float32))], opset=21)
    shared = [node("MatMul", ["x", "v"], ["m"]), node("Relu", ["m"], ["r"]), node("MatMul", ["r", "v"], ["y"])]
    yield "shared", model(shared, [tensor("v", weight(K, K))])
    yield "two_uses", model([node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["a"]), node("Mul", ["a", "m"], ["y"])], [w, b])
    ids = [node("Gather", ["table", "x"], ["e"]), node("MatMul", ["e", "w"], ["y"])]
    yield "embedding", model(ids, [tensor("table", weight(100, K)), w], ("B", 6), x_type=T.INT64, rank=3)
    tied = [node("Gather", ["table", "x"], ["e"]), node("Transpose", ["table"], ["t"]), node("MatMul", ["e", "t"], ["y"])]
    yield "tied", model(tied, [tensor("table", weight(100, K))], ("B", 6), x_type=T.INT64, rank=3)
    branch = lambda name, init: h.make_graph([node("MatMul", ["x", init.name], [name])], name, [], [h.make_tensor_value_info(name, T.FLOAT, ["B", 6, N])], [init])
    cond = [node("ReduceSum", ["x"], ["sum"], keepdims=0), node("Greater", ["sum", "zero"], ["c"]),
            node("If", ["c"], ["y"], then_branch=branch("yes", tensor("wy", weight(K, N))), else_branch=branch("no", tensor("wn", weight(K, N))))]
    yield "branches", model(cond, [tensor("zero", np.float32(0))])
    old = model([node("MatMul", ["x", "w"], ["y"])], [w])
    old.graph.input.append(h.make_tensor_value_info("w", T.FLOAT, [K, N]))
    old.ir_version = 3
    yield "initializer_is_input", old
    yield "function", functions()
    parts = [tensor(name, weight(rows, K)) for name, rows in (("q", 24), ("k", 8), ("v", 8))]
    biases = [tensor("b" + p.name, rng.standard_normal(p.dims[0]).astype(np.float32)) for p in parts]
    gemms = [node("Gemm", ["x", p.name, "b" + p.name], ["y" + p.name], transB=1) for p in parts]
    yield "siblings", model([*gemms, node("Concat", ["yv", "yq", "yk"], ["y"], axis=1)], [*parts, *biases], ("B", K))


def functions():
    """Two calls of a function whose weights are constants of its body, one also in a branch."""
    node = h.make_node
    const = lambda name, array: node("Constant", [], [name], value=tensor(name, array))
    branch = lambda name: h.make_graph([node("MatMul", ["n", "v"], [name])], name, [], [h.make_tensor_value_info(name, T.FLOAT, None)])
    body = [const("v", weight(K, K)), const("b", rng.standard_normal(K).astype(np.float32)), const("zero", np.float32(0)),
            node("MatMul", ["a", "v"], ["m"]), node("Add", ["m", "b"], ["s"]), node("ReduceMean", ["s"], ["mean"], axes=[-1]),
            node("Sub", ["s", "mean"], ["n"]), node("ReduceSum", ["n"], ["sum"], keepdims=0), node("Greater", ["sum", "zero"], ["c"]),
            node("If", ["c"], ["out"], then_branch=branch("yes"), else_branch=branch("no"))]
    opsets = [h.make_opsetid("", 17)]
    block = h.make_function("local", "Block", ["a"], ["out"], body, opsets)
    source = model([node("Block", ["x"], ["h"], domain="local"), node("Block", ["h"], ["k"], domain="local"), node("MatMul", ["k", "w"], ["y"])], [tensor("w", weight(K, N))])
    source.opset_import.append(h.make_opsetid("local", 1))
    source.functions.append(block)
    return source


def run(path, feed):
    options = ort.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0].astype(np.float64)


def main():
    tool, flags = sys.argv[1], sys.argv[2:]
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, source in cases():
            path = os.path.join(folder, f"{name}.onnx")
            onnx.save(source, path)
            value = source.graph.input[0]
            shape = [d.dim_value or 3 for d in value.type.tensor_type.shape.dim]
            kind = value.type.tensor_type.elem_type
            if kind == T.INT64:
                x = rng.integers(0, 100, shape)
            else:
                x = rng.standard_normal(shape).astype(np.float16 if kind == T.FLOAT16 else np.float32)
            want = run(path, {"x": x})
            fused = [("fuse-siblings,lowrank{rank=100 factors=f32}", 1e-4), ("fuse-siblings,int8", 2e-2)] if name == "siblings" else []
            for pipeline, limit in (*fused, ("lowrank{rank=100 factors=f32}", 1e-4), ("int8", 2e-2), ("embeddings(int8),int4", 4e-1)):
                limit = max(limit, 5e-3) if kind == T.FLOAT16 else limit
                out = os.path.join(folder, "out.onnx")
                done = subprocess.run([tool, path, "-p", pipeline, "-o", out, "--force", "-q", *flags], capture_output=True, text=True)
                scoped = "embeddings" in pipeline
                if done.returncode and (scoped and name not in ("embedding", "tied") or not scoped and name == "tied"):
                    continue
                if done.returncode:
                    print(f"FAIL {name} {pipeline}: {done.stderr.strip()[-300:]}")
                    failed += 1
                    continue
                try:
                    onnx.checker.check_model(out, full_check=True)
                    got = run(out, {"x": x})
                    error = np.abs(got - want).max() / np.abs(want).max()
                except Exception as problem:
                    print(f"FAIL {name} {pipeline}: {str(problem)[:300]}")
                    failed += 1
                    continue
                ops = sorted({n.op_type for n in onnx.load(out).graph.node})
                good = ("Slice" in ops) == pipeline.startswith("fuse")
                good &= error <= limit and (error > 0 or "int8" not in pipeline)
                failed += not good
                print(f"{'ok  ' if good else 'FAIL'} {name:22} {pipeline:30} {error:.2e} {' '.join(ops)}")
    sys.exit(1 if failed else 0)


main()

"""Times what PyTorch has for the same linears: cuBLAS in bf16, and its int4 product for few tokens.

python3 torch_peer.py [--out DIR]: needs PyTorch and a GPU. Weights rotate among at least four times the
L2; times are medians of graph replays, per product. Leaves torch.json in --out.
"""

import argparse
import json
import os

import torch

SHAPES = [(4096, 4096), (4096, 14336), (8192, 8192), (8192, 28672), (28672, 8192)]


def graph_us(calls, repeats=9):
    """Microseconds of one call: all calls are one graph."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return sorted(times[2:])[len(times[2:]) // 2]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default=os.environ.get("OUT", "."))
    options = parser.parse_args()
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}, L2 {l2 >> 20} MiB")
    results = []

    def note(kind, rows, cols, tokens, us, size):
        results.append(dict(kind=kind, rows=rows, cols=cols, tokens=tokens, us=us, bytes=size))
        print(f"{kind:12} {rows}x{cols} tokens {tokens:5}: {us:9.2f} us {2e-6 * rows * cols * tokens / us:7.1f} TFLOP/s {size / us * 1e-6:6.3f} TB/s", flush=True)

    for rows, cols in SHAPES:
        copies = max(3, -(-4 * l2 // (2 * rows * cols)))
        weights = [torch.randn(rows, cols, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
        for tokens in (1, 8, 512, 4096):
            x = torch.randn(tokens, cols, device="cuda", dtype=torch.bfloat16)
            n = max(copies, 24) if tokens <= 8 else max(copies, 4)
            us = graph_us([lambda w=weights[i % copies]: torch.nn.functional.linear(x, w) for i in range(n)])
            note("cublas bf16", rows, cols, tokens, us, 2 * rows * cols)
        del weights
        group = 64
        copies = max(3, -(-4 * l2 // (rows * cols // 2)))
        try:
            packed = [torch._convert_weight_to_int4pack(torch.randint(0, 256, (rows, cols // 2), device="cuda", dtype=torch.uint8), 8) for _ in range(copies)]
            scales = [torch.randn(cols // group, rows, 2, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
            for tokens in (1, 8):
                x = torch.randn(tokens, cols, device="cuda", dtype=torch.bfloat16)
                us = graph_us([lambda i=i: torch._weight_int4pack_mm(x, packed[i % copies], group, scales[i % copies]) for i in range(max(copies, 24))])
                note("torch int4", rows, cols, tokens, us, rows * cols // 2 + 4 * rows * cols // group)
            del packed, scales
        except Exception as error:  # an operator that this build lacks is worth a line
            print(f"torch int4 {rows}x{cols}: {type(error).__name__}: {error}")
        torch.cuda.empty_cache()
    json.dump(results, open(os.path.join(options.out, "torch.json"), "w"), indent=1)


main()

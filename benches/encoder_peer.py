"""ONNX Runtime's side of benches/encoder.rs: waits for a line, answers with a number.

usage: encoder_peer.py MODEL THREADS BATCH TOKENS RUNS

"time" runs the model RUNS times and answers the least seconds; a folder answers the largest
difference of its files 0.f32, 1.f32, ... to the float outputs, relative to the largest value.
"""

import os
import sys
import time

import numpy as np
import onnxruntime as ort

model, threads, batch, tokens, runs = sys.argv[1], *map(int, sys.argv[2:6])
options = ort.SessionOptions()
options.intra_op_num_threads = threads
options.inter_op_num_threads = 1
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
count = batch * tokens
inputs = {}
for port in session.get_inputs():
    if port.name == "input_ids":
        values = 1000 + np.arange(count, dtype=np.int64) * 37 % 20_000
    elif port.name == "attention_mask":
        values = np.ones(count, dtype=np.int64)
    else:
        values = np.zeros(count, dtype=np.int64)
    inputs[port.name] = values.reshape(batch, tokens)
outputs = session.run(None, inputs)

for line in sys.stdin:
    line = line.strip()
    if line == "time":
        least = float("inf")
        for _ in range(runs):
            start = time.perf_counter()
            session.run(None, inputs)
            least = min(least, time.perf_counter() - start)
        answer = least
    else:
        answer = 0.0
        for i, want in enumerate(outputs):
            if want.dtype != np.float32:
                continue
            got = np.fromfile(os.path.join(line, f"{i}.f32"), dtype=np.float32)
            if got.size != want.size:
                answer = float("inf")
                break
            difference = np.abs(got - want.ravel()).max()
            answer = max(answer, float(difference / np.abs(want).max()))
    print(answer, flush=True)

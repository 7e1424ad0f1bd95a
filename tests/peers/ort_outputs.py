#!/usr/bin/env python3
"""Inputs for a model and what ONNX Runtime makes of them, as .npy files.

usage: ort_outputs.py MODEL.onnx FOLDER [NAME=DIM,DIM,…]

FOLDER gets in_NAME.npy and out_NAME.npy; an in_NAME.npy that is there is taken. Dimensions that the model leaves open are 1, unless
named on the command line. Needs numpy and onnxruntime.
"""
import os
import sys

import numpy as np
import onnxruntime as ort


def main():
    model, folder = sys.argv[1:3]
    given = dict(arg.split("=") for arg in sys.argv[3:])
    session = ort.InferenceSession(model)
    rng = np.random.default_rng(5)
    feeds = {}
    for port in session.get_inputs():
        path = os.path.join(folder, f"in_{port.name}.npy")
        if os.path.exists(path):
            feeds[port.name] = np.load(path)
            continue
        if port.name in given:
            shape = [int(d) for d in given[port.name].split(",")]
        else:
            shape = [d if isinstance(d, int) else 1 for d in port.shape]
        if "int64" in port.type:
            value = np.full(shape, 16000) if port.name == "sr" else rng.integers(1, 400, shape)
            value = np.ones(shape) if "mask" in port.name else value
            feeds[port.name] = np.asarray(value, np.int64)
        else:
            feeds[port.name] = (rng.standard_normal(shape) * 0.1).astype(np.float32)
    outputs = session.run(None, feeds)
    os.makedirs(folder, exist_ok=True)
    for name, value in feeds.items():
        np.save(os.path.join(folder, f"in_{name}.npy"), value)
    for port, value in zip(session.get_outputs(), outputs):
        np.save(os.path.join(folder, f"out_{port.name}.npy"), value)


main()

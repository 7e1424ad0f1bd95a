"""Checks and times variants of linear_prefill on a machine with a GPU.

python3 prefill.py [--arch sm_90] [--work DIR] [--out DIR] [--kernels DIR] [--quick]: needs nvcc and a GPU,
nothing else. Prints a line for each case; leaves prefill.txt in --out. Peers are timed by torch_peer.py.
"""

import argparse
import concurrent.futures
import hashlib
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
DEFAULTS = dict(FORMAT=0, BITS=4, GROUP=64, ZEROS=0, XSCALE=0, LOWRANK=0, VFORMAT=8, UFORMAT=8, SPARSE=0, ACTIVATION=0, GLU=0, BIAS=0, RESIDUAL=0,
                SOFTCAP=0, EXPERTS=0)
SMALL = [dict(rows=64, cols=256, M=9), dict(rows=48, cols=100, M=130), dict(rows=304, cols=1100, M=257), dict(rows=512, cols=2048, M=70)]
CHECKS = [dict(BITS=b, ZEROS=z, GROUP=g) for b in (4, 3, 2, 8) for z in (0, 1) for g in (64, 32, 128, 0)]
CHECKS += [dict(FORMAT=f, GROUP=0) for f in (1, 2, 3)] + [dict(FORMAT=4, BITS=16, GROUP=0), dict(GLU=1, ACTIVATION=1, BIAS=1, RESIDUAL=1)]
CHECKS += [dict(LOWRANK=1), dict(SPARSE=1), dict(LOWRANK=1, SPARSE=1, BIAS=1, RESIDUAL=1, SOFTCAP=1)]
SHAPES = [(4096, 4096), (4096, 14336), (28672, 4096), (8192, 8192), (8192, 28672)]
TIMES = [(dict(), SHAPES, (512, 4096)), (dict(BITS=2), SHAPES[:2], (512,)), (dict(BITS=3), SHAPES[:2], (512,)), (dict(BITS=8, GROUP=32), SHAPES[:2], (512,)),
         (dict(GROUP=32), SHAPES[:2], (512,)), (dict(ZEROS=1), SHAPES[:2], (512,)), (dict(GROUP=128), SHAPES[:2], (512,)), (dict(GROUP=0), SHAPES[:2], (512,)),
         (dict(FORMAT=2, BITS=0, GROUP=0), SHAPES[:2], (512,)), (dict(FORMAT=4, BITS=16, GROUP=0), SHAPES[:2], (512,)), (dict(LOWRANK=1), SHAPES[:2], (512,)),
         (dict(SPARSE=1), SHAPES[:2], (512,)), (dict(LOWRANK=1, SPARSE=1), SHAPES[:2], (512,)), (dict(), SHAPES[:2], (64, 128, 1024))]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--work", default="target/prefill")
    parser.add_argument("--out", default=os.environ.get("OUT", "."))
    parser.add_argument("--kernels", default=os.path.join(HERE, "..", "..", "kernels"))
    parser.add_argument("--quick", action="store_true", help="plain int4 alone is timed")
    options = parser.parse_args()
    os.makedirs(options.work, exist_ok=True)
    nvcc = ["nvcc", "-arch=" + options.arch, "-O3", "-std=c++17", "-diag-suppress=177"]
    program = os.path.join(options.work, "prefill")

    def cubin(kernel, defines):
        path = os.path.join(options.work, hashlib.sha1(repr((options.kernels, kernel, sorted(defines.items()))).encode()).hexdigest()[:16] + ".cubin")
        if not os.path.exists(path):
            subprocess.run([*nvcc, "-cubin", "-I" + options.kernels, *[f"-D{k}={v}" for k, v in defines.items()], "-o", path,
                            os.path.join(options.kernels, kernel + ".cu")], check=True)
        return path

    def call(what, defines, cases):
        everything = {**DEFAULTS, **defines}
        line = [program, what, cubin("linear_prefill", everything), cubin("low_rank_inner", dict(VFORMAT=8))]
        for i, case in enumerate(cases):
            block = 64 if everything["SPARSE"] else 128
            given = {**everything, "ACT": 1, "block_tokens": block, "block_tiles": 8, **case}
            line += (["--"] if i else []) + [f"{k}={v}" for k, v in given.items()]
        done = subprocess.run(line, capture_output=True, text=True)
        return done.returncode, (done.stdout + done.stderr).strip()

    times = TIMES[:1] if options.quick else TIMES
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        subprocess.run([*nvcc, "-o", program, os.path.join(HERE, "prefill.cu")], check=True)
        variants = {tuple(sorted({**DEFAULTS, **d}.items())) for d in CHECKS + [t[0] for t in times]}
        list(pool.map(lambda v: cubin("linear_prefill", dict(v)), variants))
        cubin("low_rank_inner", dict(VFORMAT=8))
    bad, lines = 0, []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for code, text in pool.map(lambda d: call("check", d, [dict(case, rank=20) for case in SMALL]), CHECKS):
            bad += code != 0
            lines.append(text)
            if code:
                print(text, flush=True)
    good = sum(line.startswith("ok") for text in lines for line in text.splitlines())
    print(f"checks: {good} good, {bad} variants bad", flush=True)
    for defines, shapes, tokens in times:
        code, text = call("time", defines, [dict(rows=r, cols=c, M=m, rank=64) for m in tokens for r, c in shapes])
        bad += code != 0
        lines.append(text)
        for line in text.splitlines():
            values = dict(pair.split("=") for pair in line.split() if "=" in pair)
            label = " ".join(f"{k}={v}" for k, v in defines.items()) or "int4"
            head = line.split(" ACT=")[0]
            print(f"{label:30} {values.get('rows')}x{values.get('cols')} tokens {values.get('M')}: {head if values else line}", flush=True)
    open(os.path.join(options.out, "prefill.txt"), "w").write("\n".join(lines) + "\n")
    sys.exit(1 if bad else 0)


main()

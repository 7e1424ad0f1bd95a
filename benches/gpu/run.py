"""Builds variants of the fused linear on a machine with a GPU, checks and times them.

python3 run.py [--arch sm_90] [--work DIR] [--quick] [--match TEXT] [--times FILE] [--out DIR]: needs
nvcc and a GPU, nothing else. --match takes what has this text among its defines alone; --times has a JSON
list of [defines, sizes] to time in place of the usual ones. Prints a table; leaves results.json and log.txt in --out.
"""

import argparse
import concurrent.futures
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
KERNELS = os.path.join(HERE, "..", "..", "kernels")
DEFAULTS = dict(FORMAT=0, BITS=4, GROUP=64, ZEROS=0, M=1, ACT=0, XIN=0, XSCALE=0, LOWRANK=0, VFORMAT=8, UFORMAT=8, SPARSE=0,
                ACTIVATION=0, GLU=0, BIAS=0, RESIDUAL=0, SOFTCAP=0, EXPERTS=0, SPLIT=0, WARPS=16, ROTATED=0)


def defines(variant):
    return {**DEFAULTS, **{k: v for k, v in variant.items() if k.isupper()}}


def cubin(variant, options):
    d = defines(variant)
    name = hashlib.sha1(repr(sorted(d.items())).encode()).hexdigest()[:16]
    path = os.path.join(options.work, name + ".cubin")
    if not os.path.exists(path):
        command = ["nvcc", "-arch=" + options.arch, "-O3", "-std=c++17", "-cubin", "-diag-suppress=177", "-I" + KERNELS]
        command += [f"-D{k}={v}" for k, v in d.items()] + ["-o", path, os.path.join(KERNELS, "fused_linear.cu")]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return path


def checks():
    shapes = [dict(rows=64, cols=256, grid=2), dict(rows=33, cols=100, grid=2), dict(rows=512, cols=4096, grid=32), dict(rows=96, cols=1100, grid=5)]
    for bits, zeros, (group, m) in itertools.product((4, 3, 2, 8), (0, 1), ((64, 1), (32, 8), (128, 3), (0, 2))):
        yield dict(BITS=bits, ZEROS=zeros, GROUP=group, M=m), shapes
        if group == 64:
            yield dict(BITS=bits, ZEROS=zeros, GROUP=group, M=4, ACT=1), shapes
    for xin in (1, 2, 3):
        yield dict(XIN=xin, M=2, LOWRANK=1, SPARSE=1), shapes
    for form in (1, 2, 3):
        yield dict(FORMAT=form, GROUP=0, M=2), shapes
    for v, u in ((8, 8), (4, 4), (16, 16), (32, 32)):
        yield dict(LOWRANK=1, VFORMAT=v, UFORMAT=u, M=2, SPARSE=1), [dict(s, rank=20, blocks=3) for s in shapes]
    for m, glu in ((1, 0), (2, 1)):
        yield dict(LOWRANK=1, SPARSE=1, SPLIT=1, M=m, GLU=glu, ACTIVATION=glu), [dict(s, grid=s["grid"] * 3 + 1) for s in shapes]
    for states, m, act in ((16, 1, 0), (12, 2, 0), (12, 8, 0), (16, 3, 1), (8, 1, 0)):
        yield dict(FORMAT=4, BITS=states, GROUP=0, M=m, ACT=act, WARPS=8 if m > 4 else 16), [dict(s, widest=k) for s in shapes for k in (0, 2, 3, 7)]
    for rotated, m in ((1, 1), (2, 2)):
        yield dict(FORMAT=4, BITS=12, GROUP=0, M=m, ROTATED=rotated, LOWRANK=1, SPARSE=1, RESIDUAL=1), [dict(s, rank=20) for s in shapes]
    yield dict(M=8, SPLIT=1, BITS=2, STAGES=4), [dict(rows=512, cols=4096, grid=200), dict(rows=1024, cols=8192, grid=132)]
    for mode in (1, 2):
        yield dict(EXPERTS=mode, M=mode, LOWRANK=1), [dict(s, experts=5, tokens=3, top_k=2) for s in shapes]


SHAPES = [(4096, 4096), (4096, 14336), (8192, 8192), (8192, 28672)]


def stages(variant):
    """As plans choose: fewer units on their way where activations of many tokens fill shared memory, and
    beside low-rank and sparse terms."""
    if variant["M"] > 2:
        return dict(variant, STAGES=2)
    return dict(variant, STAGES={4: 2, 3: 3, 2: 4}[variant["BITS"]]) if variant["LOWRANK"] and variant["SPARSE"] else variant


def timings(quick):
    both = SHAPES + [(14336, 4096), (28672, 8192)]
    for bits, m, xin in itertools.product((4, 3, 2), (1, 2, 4, 8), (0, 3)):
        for rank, sparse in itertools.product((0, 16, 64, 256), (0, 1)):
            if quick and (bits == 3 or m in (2, 4) or rank in (16, 256) or (m > 1 and xin == 0)):
                continue
            for rows, cols in SHAPES if rank or sparse else both:
                yield stages(dict(BITS=bits, M=m, XIN=xin, LOWRANK=int(rank > 0), SPARSE=sparse)), dict(rows=rows, cols=cols, rank=max(rank, 16))
    for bits in (4, 2):
        for split in (0, 1) if not quick else (0,):
            for rows, cols in SHAPES[:3] + [(1024, 8192), (6144, 4096), (10240, 8192)]:
                yield dict(BITS=bits, XIN=1, SPLIT=split), dict(rows=rows, cols=cols)
    for rows, cols in SHAPES[:3]:
        yield dict(BITS=8, XIN=3), dict(rows=rows, cols=cols)
        yield dict(BITS=4, ACT=1), dict(rows=rows, cols=cols)
        yield dict(FORMAT=1, GROUP=0), dict(rows=rows, cols=cols)
        yield dict(FORMAT=5, GROUP=0, LOWRANK=1, SPARSE=1, RESIDUAL=1), dict(rows=rows, cols=cols, rank=64)
        for bits in (2, 3, 4):
            yield dict(FORMAT=4, BITS=16, GROUP=0, XIN=0), dict(rows=rows, cols=cols, widest=bits)


def arguments(variant, case):
    return [f"{k}={v}" for k, v in {**defines(variant), **case}.items()]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--work", default="target/fused_linear")
    parser.add_argument("--out", default=os.environ.get("OUT", "."))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="check or time")
    parser.add_argument("--match", default="")
    parser.add_argument("--times")
    parser.add_argument("--sanitize", action="store_true", help="compute-sanitizer on some of the checks")
    options = parser.parse_args()
    os.makedirs(options.work, exist_ok=True)
    start = time.time()
    program = os.path.join(options.work, "fused_linear")
    subprocess.run(["nvcc", "-arch=" + options.arch, "-O3", "-std=c++17", "-o", program, os.path.join(HERE, "fused_linear.cu")], check=True)
    check_list = [] if options.only == "time" else list(checks())
    time_list = [] if options.only == "check" else json.load(open(options.times)) if options.times else list(timings(options.quick))
    named = lambda item: options.match in " ".join(f"{k}={v}" for k, v in item[0].items())
    check_list, time_list = list(filter(named, check_list)), time_list if options.times else list(filter(named, time_list))
    variants = {tuple(sorted(defines(v).items())): v for v, _ in check_list + time_list}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda v: cubin(v, options), variants.values()))
    print(f"{len(variants)} variants built in {time.time() - start:.0f} s", flush=True)

    log = open(os.path.join(options.out, "log.txt"), "w")
    good = bad = 0
    for variant, cases in check_list:
        line = [program, "check", cubin(variant, options)]
        for i, case in enumerate(cases):
            line += (["--"] if i else []) + arguments(variant, case)
        done = subprocess.run(line, capture_output=True, text=True)
        log.write(done.stdout + done.stderr)
        for out in done.stdout.splitlines():
            good += out.startswith("ok")
            if not out.startswith("ok"):
                bad += 1
                print(out)
        if done.returncode > 1 or (done.returncode and not done.stdout):
            bad += 1
            print("FAIL", variant, done.stderr.strip())
    print(f"checks: {good} good, {bad} bad ({time.time() - start:.0f} s)", flush=True)
    if options.sanitize:
        for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
            for variant in (dict(LOWRANK=1, SPARSE=1, SPLIT=1, M=2), dict(BITS=3, ZEROS=1, M=1), dict(FORMAT=1, GROUP=0, M=2)):
                line = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", program, "check", cubin(variant, options)]
                line += arguments(variant, dict(rows=96, cols=1100, grid=5))
                done = subprocess.run(line, capture_output=True, text=True)
                bad += done.returncode != 0
                print(tool, variant, "clean" if done.returncode == 0 else "NOT CLEAN\n" + "\n".join(done.stdout.splitlines()[-12:]), flush=True)

    results = []
    if time_list:
        ceiling = float(subprocess.run([program, "bandwidth"], capture_output=True, text=True, check=True).stdout)
        print(f"read bandwidth {ceiling / 1e12:.3f} TB/s")
        environment = dict(os.environ, BYTES_PER_SECOND=str(ceiling))
        by_variant = {}
        for variant, case in time_list:
            by_variant.setdefault(tuple(sorted(variant.items())), (variant, []))[1].append(case)
        for variant, cases in by_variant.values():
            line = [program, "time", cubin(variant, options)]
            for i, case in enumerate(cases):
                line += (["--"] if i else []) + arguments(variant, case)
            done = subprocess.run(line, capture_output=True, text=True, env=environment)
            log.write(done.stdout + done.stderr)
            if done.returncode:
                print("FAIL", variant, done.stderr.strip())
            for case, out in zip(cases, done.stdout.splitlines()):
                found = re.match(r"time us (\S+) pdl (\S+) bytes (\d+) percent (\S+) pdl (\S+) grid (\d+)", out)
                label = " ".join(f"{k}={v}" for k, v in variant.items()) + f" {case['rows']}x{case['cols']}" + (f" r{case['rank']}" if variant.get("LOWRANK") else "")
                if not found:
                    print(f"{label:70} {out[:80]}")
                    continue
                us, pdl, size, percent, percent_pdl, grid = map(float, found.groups())
                results.append(dict(variant=variant, case=case, us=us, us_pdl=pdl, bytes=size, percent=percent, percent_pdl=percent_pdl, grid=grid))
                print(f"{label:70} {us:8.2f} us {percent:5.1f} %  pdl {pdl:8.2f} us {percent_pdl:5.1f} %")
        json.dump(dict(bytes_per_second=ceiling, results=results), open(os.path.join(options.out, "results.json"), "w"), indent=1)
    print(f"done in {time.time() - start:.0f} s")
    sys.exit(1 if bad else 0)


main()

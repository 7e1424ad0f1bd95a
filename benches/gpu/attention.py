"""Checks and times variants of attention_decode on a machine with a GPU.

python3 attention.py [--arch sm_90] [--work DIR] [--out DIR] [--sanitize]: needs nvcc and a GPU, nothing
else. Prints a line for each case; leaves attention.txt in --out.
"""

import argparse
import concurrent.futures
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
# Head width, query heads of a key head, KV format, splits; then key heads, position, sequences.
CASES = [
    ((128, 4, 0, 16), [(8, 8191, 1), (8, 127, 1), (8, 2047, 1)]),
    ((128, 8, 0, 16), [(8, 8191, 1), (8, 1000, 1)]),
    ((128, 8, 1, 16), [(8, 8191, 1), (8, 127, 1)]),
    ((128, 4, 1, 4), [(8, 8191, 4)]),
    ((64, 3, 0, 44), [(3, 8191, 1), (3, 127, 1)]),
    ((128, 12, 0, 16), [(8, 4095, 1)]),
    ((256, 2, 0, 32), [(4, 4095, 1)]),
    ((64, 1, 0, 1), [(32, 511, 8)]),
    ((20, 2, 1, 3), [(2, 300, 2)]),
]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--work", default="target/attention")
    parser.add_argument("--out", default=os.environ.get("OUT", "."))
    parser.add_argument("--sanitize", action="store_true", help="compute-sanitizer on checks of every variant, without timings")
    options = parser.parse_args()
    os.makedirs(options.work, exist_ok=True)

    def build(variant):
        dim, group, kv, splits = variant
        path = os.path.join(options.work, "attention_" + "_".join(map(str, variant)))
        defines = dict(HEAD_DIM=dim, GROUP_Q=group, KV=kv, PAGED=0, QK_NORM=0, ROPE=1, SOFTCAP=0, SPLITS=splits)
        command = ["nvcc", "-arch=" + options.arch, "-O3", "-std=c++17", "-diag-suppress=177", *[f"-D{k}={v}" for k, v in defines.items()]]
        subprocess.run([*command, "-o", path, os.path.join(HERE, "attention.cu")], check=True)
        return path

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        programs = list(pool.map(build, [variant for variant, _ in CASES]))
    bad, lines = 0, []
    for program, (_, cases) in zip(programs, CASES):
        for case in cases:
            done = subprocess.run([program, *map(str, case)], capture_output=True, text=True)
            bad += done.returncode != 0
            lines.append((done.stdout + done.stderr).strip())
            print(lines[-1], flush=True)
    for program, ((dim, group, kv, splits), cases) in zip(programs, CASES) if options.sanitize else []:
        for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
            # Graphs and dependent launches under racecheck end a program or take minutes.
            line = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", program, "2", "300", "1", "check"]
            done = subprocess.run(line, capture_output=True, text=True)
            bad += done.returncode != 0
            said = "clean" if done.returncode == 0 else "NOT CLEAN\n" + done.stdout + done.stderr
            lines.append(f"{tool} HEAD_DIM={dim} GROUP_Q={group} KV={kv} SPLITS={splits}: {said}")
            print(lines[-1], flush=True)
    open(os.path.join(options.out, "attention.txt"), "w").write("\n".join(lines) + "\n")
    sys.exit(1 if bad else 0)


main()

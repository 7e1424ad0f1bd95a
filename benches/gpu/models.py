"""Runs whole models on a GPU and on the processor, compares what comes out, and times the launches.

python3 models.py [--out DIR] [--text FILE] [--plan FOLDER[:PAST] …] BINARY [MODEL …]: BINARY is a built
hlrc-opt. Each MODEL is run at both precisions, greedily, and its tokens compared with the processor's;
its divergence from the processor's predictions is measured on the text, and its launches are timed. Each
--plan, a plan of a configuration, is timed with PAST positions seen. Leaves models.json in --out.
"""

import argparse
import glob
import json
import os
import subprocess
import sys
import sysconfig
import time

PROMPT = "Once upon a time"


def environment():
    """With the folder of an NVRTC that came with a toolkit or a Python package."""
    packages = sysconfig.get_paths()["purelib"]
    found = [os.path.dirname(p) for pattern in (f"{packages}/nvidia/*/lib/libnvrtc.so.*", "/usr/local/cuda*/lib64/libnvrtc.so.*") for p in glob.glob(pattern)]
    path = ":".join(dict.fromkeys(found + os.environ.get("LD_LIBRARY_PATH", "").split(":")))
    return dict(os.environ, LD_LIBRARY_PATH=path)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("models", nargs="*")
    parser.add_argument("--plan", action="append", default=[])
    parser.add_argument("--text")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12, help="kinds of launches to print, those that take most")
    parser.add_argument("--out", default=os.environ.get("OUT", "."))
    options = parser.parse_args()
    env, results, bad = environment(), [], 0

    def call(*args):
        start = time.time()
        done = subprocess.run([options.binary, *map(str, args)], capture_output=True, text=True, env=env)
        return done.returncode, done.stdout, done.stderr.strip(), time.time() - start

    def table(bench, program):
        found = bench[program]
        print(f"  {program}: {found['us']:.1f} us, {found['tokens_per_second']:.1f} tokens/s; reads reach {bench['read_gbps']:.0f} GB/s")
        kinds = {}
        for step in found["steps"]:
            key = step["kernel"], step["bytes"], round(step["measured_us"], 3)
            kinds.setdefault(key, [step, 0])[1] += 1
        most = sorted(kinds.items(), key=lambda kind: -kind[1][1] * kind[0][2])
        for (kernel, size, us), (step, count) in most[: options.steps if program == "decode" else 4]:
            off = 100 * (step["estimated_us"] / us - 1)
            print(f"    {step['step'][-26:]:26} {kernel:16} ×{count:3} {size:11} B {us:8.2f} us planned {step['estimated_us']:8.2f} ({off:+6.1f} %)")

    for model in options.models:
        name = os.path.basename(model.rstrip("/"))
        for precision in ("exact", "int8"):
            run = ["run", "-q", model, "-p", PROMPT, "-n", options.tokens, "--precision", precision, "--ignore-eos"]
            want, have = call(*run), call(*run, "--device", "cuda:0")
            same = want[0] == have[0] == 0 and want[1] == have[1]
            bad += not same
            print(f"{name} {precision}: {'the same text' if same else 'ANOTHER TEXT'}, processor {want[3]:.1f} s, GPU {have[3]:.1f} s", flush=True)
            if not same:
                print(f"  want ({want[0]}) {want[1][:300]!r}\n  have ({have[0]}) {have[1][:300]!r}\n  {have[2][-1500:]}", flush=True)
            results.append(dict(model=name, precision=precision, same=same))
            if options.text:
                code, out, error, seconds = call("eval", "-q", model, "--ref", model, "-d", options.text, "--ctx", 256, "--windows", 2, "--no-cache", "--json",
                                                 "--precision", precision, "--device", "cuda:0")
                if code:
                    bad += 1
                    print(f"  eval: {error[-1500:]}", flush=True)
                else:
                    against = json.loads(out)["models"][0]["against"]
                    print(f"  KL of the exact processor: mean {against['kl']['mean']:.3e} ({seconds:.1f} s)", flush=True)
                    results[-1].update(kl=against["kl"]["mean"])
        code, out, error, _ = call("bench", "-q", model, "--device", "cuda:0", "--json")
        if code:
            bad += 1
            print(f"  bench: {error[-1500:]}")
            continue
        results.append(json.loads(out))
        for program in ("decode", "prefill"):
            table(results[-1], program)
        sys.stdout.flush()
    for plan in options.plan:
        folder, _, past = plan.partition(":")
        code, out, error, seconds = call("bench", "-q", folder, "--device", "cuda:0", "--json", *(["--past", past] if past else []))
        print(f"{folder} ({seconds:.1f} s)")
        if code:
            bad += 1
            print(f"  bench: {error[-1500:]}")
            continue
        results.append(json.loads(out))
        for program in ("decode", "prefill"):
            table(results[-1], program)
        sys.stdout.flush()
    json.dump(results, open(os.path.join(options.out, "models.json"), "w"), indent=1)
    sys.exit(1 if bad else 0)


main()

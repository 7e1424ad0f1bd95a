#!/usr/bin/env python3
"""Times a step of training against torch: the same model, terms, teacher, batch and optimizer.

    .venv/bin/python benches/train_speed.py target/release/hlrc-opt MODEL TEXT [CTX BATCH STEPS THREADS LAYERS]

MODEL is a Hugging Face folder of a dense family; with LAYERS its first layers alone are taken, so that
blocks of a larger model can be timed in a minute. It is rewritten as tests/fixtures/gradients/terms.py
rewrites it; a step is the original's forward pass, the rewritten model's forward and backward pass, and
AdamW on scales, factors, outliers and norms. In torch a matrix is put together from its terms once a
step (codes as f32 beforehand), in f32, without a compiler. Both run in turns, twice; the first steps of
each are left out. Printed are tokens per second, and per second of processor time, which other work on
the machine disturbs less.
"""
import json, os, resource, subprocess, sys, tempfile, time

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "tests", "fixtures", "gradients"))
import make, terms  # noqa: E402

terms.PRECISION = torch.float32
WARM = 1


def ours(program, folder, coded, text, ctx, batch, steps, threads):
    """Tokens per second of both kinds, from the times of two runs that differ in their steps."""
    def run(count):
        out = os.path.join(os.path.dirname(coded), "trained.hlrc")
        spent = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
        begun, before = time.perf_counter(), spent()
        subprocess.run(
            [program, "train", coded, "--teacher", folder, "--data", text, "-q", "-f", "-o", out,
             "--params", "scales,lowrank,sparse,norms", "--ctx", str(ctx), "--batch", str(batch),
             "--steps", str(count), "--judge-every", "100000", "--checkpoint-every", "100000",
             "--val", "1", "--examples", str(batch * (steps + WARM) + 1), "--threads", str(threads)],
            check=True)
        return time.perf_counter() - begun, spent() - before
    short, long = run(WARM), run(WARM + steps)
    return [batch * ctx * steps / (b - a) for a, b in zip(short, long)]


def theirs(folder, coded, tokens, ctx, batch, steps):
    weights, matrices = terms.read(os.path.join(coded, "module.hlir"))
    teacher = make.load(folder).float()
    student = make.load(folder).float()
    leaves = {k: p for k, p in student.named_parameters() if "norm" in k}
    rest = {k: p.detach() for k, p in student.named_parameters() if "norm" not in k}
    moving = dict(leaves)
    parts = [terms.matrix(weights, moving, *m) for m in matrices]
    optimizer = torch.optim.AdamW(moving.values(), lr=1e-4)
    begun = before = None
    for step in range(WARM + steps):
        if step == WARM:
            begun, before = time.perf_counter(), time.process_time()
        ids = tokens[step * batch * ctx:(step + 1) * batch * ctx].reshape(batch, ctx)
        with torch.no_grad():
            want = teacher(input_ids=ids, use_cache=False).logits.log_softmax(-1)
        parameters = {**rest, **leaves}
        for stem, total in parts:
            terms.place(parameters, stem, total())
        logits = torch.func.functional_call(
            student, parameters, (), {"input_ids": ids, "use_cache": False}, tie_weights=True).logits
        loss = torch.nn.functional.kl_div(
            logits.log_softmax(-1).flatten(0, 1), want.flatten(0, 1), log_target=True, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(moving.values()), 1.0)
        optimizer.step()
    tokens = batch * ctx * steps
    return [tokens / (time.perf_counter() - begun), tokens / (time.process_time() - before)]


def cut(folder, layers, out):
    """The model's first layers, as a model of its own."""
    from safetensors.torch import load_file, save_file
    os.mkdir(out)
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    config["num_hidden_layers"] = layers
    with open(os.path.join(out, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file)
    def kept(name):
        parts = name.split(".")
        return "layers" not in parts or int(parts[parts.index("layers") + 1]) < layers
    weights = load_file(os.path.join(folder, "model.safetensors"))
    save_file({k: w for k, w in weights.items() if kept(k)}, os.path.join(out, "model.safetensors"),
              metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        os.symlink(os.path.abspath(os.path.join(folder, name)), os.path.join(out, name))
    return out


def main():
    program, folder, text = sys.argv[1:4]
    ctx, batch, steps, threads, layers = (
        [int(n) for n in sys.argv[4:]] + [256, 4, 6, 2, 0][len(sys.argv) - 4:])
    torch.set_num_threads(threads)
    from tokenizers import Tokenizer
    with open(text, encoding="utf-8") as file:
        ids = Tokenizer.from_file(os.path.join(folder, "tokenizer.json")).encode(file.read()).ids
    need = batch * ctx * (steps + WARM)
    tokens = torch.tensor((ids * (need // len(ids) + 1))[:need])
    with tempfile.TemporaryDirectory() as scratch:
        if layers:
            folder = cut(folder, layers, os.path.join(scratch, "cut"))
        coded = os.path.join(scratch, "coded.hlrc")
        subprocess.run([program, folder, "-q", "-p", terms.PIPELINE, "-o", coded], check=True)
        for turn in range(2):
            a = ours(program, folder, coded, text, ctx, batch, steps, threads)
            b = theirs(folder, coded, tokens, ctx, batch, steps)
            for what, own, peer in zip(("second", "processor second"), a, b):
                print(f"turn {turn}: tokens per {what}: {own:.0f}, torch {peer:.0f}: {own / peer:.2f}x")


main()

#!/usr/bin/env bash
# What each pipeline costs and says, beside llama.cpp's types, all by the same evaluator.
#
# usage: benches/quality.sh HF_MODEL TEXT [LLAMA_BIN]
#
# Prints a table of bits per weight, bytes on disk, perplexity, KL divergence and top-1 agreement
# with the original over the first WINDOWS (20) windows of CTX (512) tokens. llama.cpp's files
# (benches/llama_bench.sh says how to build it; GGUF names the bf16 file) become f32 checkpoints by
# benches/from_gguf.py, which needs numpy and gguf (PYTHON).
set -euo pipefail
model=$1 text=$2 llama=${3:-}
cd "$(dirname "$0")/.."
work=${WORK:-target/quality} python=${PYTHON:-target/venv/bin/python}
gguf=${GGUF:-${model%/}.gguf}
mkdir -p "$work"
cargo build --release --bin hlrc-opt
tool=target/release/hlrc-opt

candidates=()
while IFS='|' read -r name pipeline; do
  [ -d "$work/$name.hlrc" ] || $tool "$model" -q -p "$pipeline" -o "$work/$name.hlrc"
  candidates+=("$work/$name.hlrc")
done << 'PIPELINES'
int8|int8
int4|int4
int3|int3
int2|int2
lowrank-outlier-int4|lowrank,outlier,int4
int8-all|int8,embeddings(int8)
int4-all|int4,embeddings(int8)
lowrank-outlier-int4-all|lowrank,outlier,int4,embeddings(int8)
PIPELINES
if [ -n "$llama" ]; then
  for type in Q8_0 Q4_0 IQ4_NL; do
    [ -f "$work/$type.gguf" ] || "$llama/llama-quantize" --pure "$gguf" "$work/$type.gguf" "$type" > "$work/quantize.log" 2>&1
    [ -d "$work/$type" ] || "$python" benches/from_gguf.py "$work/$type.gguf" "$model" "$work/$type" > /dev/null
    candidates+=("$work/$type")
  done
fi
$tool eval "${candidates[@]}" --ref "$model" --data "$text" --ctx "${CTX:-512}" --windows "${WINDOWS:-20}" \
  --json -q > "$work/eval.json"
"$python" - "$work" << 'TABLE'
import glob, json, os, sys
work = sys.argv[1]
result = json.load(open(f"{work}/eval.json"))
print(result["described"])
print("| model | bytes | bits per weight | perplexity | KL | median KL | top-1 |\n|---|---|---|---|---|---|---|")
reference = result["reference"]
print(f"| original | | 16 | {reference['perplexity']:.2f} | | | |")
parameters = 0
for row in result["models"]:
    name = os.path.basename(row["name"].rstrip("/")).removesuffix(".hlrc")
    if os.path.exists(f"{work}/{name}.gguf"):
        size = os.path.getsize(f"{work}/{name}.gguf")
    else:
        size = sum(os.path.getsize(f) for f in glob.glob(f"{work}/{name}.hlrc/*.safetensors"))
        parameters = json.load(open(f"{work}/{name}.hlrc/report.json"))["model_totals"]["params_before"]
    kl = row["against"]["kl"]
    print(f"| {name} | {size/1e6:.1f} MB | {8*size/parameters:.2f} | {row['perplexity']:.2f} | "
          f"{kl['mean']:.4f} ± {kl['standard_error']:.4f} | {kl['median']:.4f} | {100*row['against']['top1_agreement']:.1f} % |")
TABLE

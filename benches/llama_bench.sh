#!/usr/bin/env bash
# Prefill and decode speed beside llama.cpp's, on the same machine in turns.
#
# usage: benches/llama_bench.sh HF_MODEL LLAMA_BIN|--build [THREADS]
#
# LLAMA_BIN holds llama-bench and llama-quantize; --build makes them by benches/build_llama.sh.
# MODEL.gguf (bf16) beside HF_MODEL is made by its convert_hf_to_gguf.py --outtype bf16.
set -euo pipefail
model=$1 llama=$2 threads=${3:-$(nproc)}
if [ "$llama" = --build ]; then
  llama=$("$(dirname "$0")/build_llama.sh" | tail -1)
fi
rounds=${ROUNDS:-3} prompt=${PROMPT:-512} tokens=${TOKENS:-64}
cd "$(dirname "$0")/.."
work=${WORK:-target/llama_bench}
mkdir -p "$work"

gguf=${GGUF:-${model%/}.gguf}
if [ ! -f "$gguf" ]; then
  echo "$gguf: is not there; make it with llama.cpp's convert_hf_to_gguf.py --outtype bf16" >&2
  exit 2
fi
for type in Q4_0 Q8_0 IQ4_NL; do
  [ -f "$work/$type.gguf" ] || "$llama/llama-quantize" --pure "$gguf" "$work/$type.gguf" "$type" "$threads" > "$work/quantize.log" 2>&1
done
# As llama.cpp does it by default: the table of tokens in 8 bits where it is the head, too.
[ -f "$work/Q4_0-mixed.gguf" ] || "$llama/llama-quantize" "$gguf" "$work/Q4_0-mixed.gguf" Q4_0 "$threads" > "$work/quantize.log" 2>&1

cargo build --release --bin hlrc-opt
cargo bench --no-run --bench tokens 2> "$work/build.log"
bench=$(grep -o 'target/release/deps/tokens-[0-9a-f]*' "$work/build.log")
ours() { # name, pipeline
  [ -d "$work/$1.hlrc" ] || target/release/hlrc-opt "$model" -q -p "$2" -o "$work/$1.hlrc"
}
ours int4 'int4,embeddings(int8)'
ours int8 'int8,embeddings(int8)'
ours int3 'int3,embeddings(int8)'
ours int2 'int2,embeddings(int8)'
ours mixed 'lowrank{rank=32},outlier,int4,embeddings(int8)'

for round in $(seq "$rounds"); do
  echo "== round $round"
  "$bench" --int8 --threads "$threads" --prompt "$prompt" --tokens "$tokens" --repeats 3 \
    "$work"/{int4,int8,int3,int2,mixed}.hlrc
  "$bench" --threads "$threads" --prompt "$prompt" --tokens "$tokens" --repeats 2 "$model"
  for gguf_file in "$work"/{Q4_0,Q4_0-mixed,Q8_0,IQ4_NL}.gguf "$gguf"; do
    "$llama/llama-bench" -m "$gguf_file" -t "$threads" -p "$prompt" -n "$tokens" -r 3 2> /dev/null \
      | grep -E 'pp|tg'
  done
done

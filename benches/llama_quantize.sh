#!/usr/bin/env bash
# Data-free int4 against llama-quantize --pure Q4_0: the whole command, hashing included, median of
# five (or of $RUNS), page cache warm, two threads each, alternating.
#
#   benches/llama_quantize.sh CHECKPOINT_DIR LLAMA_QUANTIZE PYTHON
#
# CHECKPOINT_DIR: a Llama checkpoint in one model.safetensors (smollm2-135m from ../shared/models/make.py)
# LLAMA_QUANTIZE: the peer. To get it:
#   pip download --no-deps --no-binary llama-cpp-python llama-cpp-python && tar xf llama_cpp_python-*.tar.gz
#   cmake -S llama_cpp_python-*/vendor/llama.cpp -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
#     -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
#     -DLLAMA_BUILD_SERVER=OFF -DBUILD_SHARED_LIBS=OFF
#   ninja -C build llama-quantize          (build/bin/llama-quantize)
# PYTHON: one with numpy and gguf, for the peer's input (benches/to_gguf.py)
set -euo pipefail
model=$1 peer=$2 python=$3 runs=${RUNS:-5}
cd "$(dirname "$0")/.."
cargo build --release -q
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" benches/to_gguf.py "$model" "$work/model.gguf"
cat "$model"/model.safetensors "$work/model.gguf" > /dev/null

seconds() { local begun=$EPOCHREALTIME; "$@" > /dev/null 2>&1; bc -l <<< "$EPOCHREALTIME - $begun"; }
median() { sort -n | awk '{v[NR]=$1} END {print v[int((NR+1)/2)]}'; }
ours() { seconds target/release/hlrc-opt "$model" -p "$1" --threads 2 --force -o "$work/out.hlrc"; }
theirs() { seconds "$peer" --pure "$work/model.gguf" "$work/out.gguf" Q4_0 2; }

ours 'int4{scale=absmax}' > /dev/null; theirs > /dev/null
for _ in $(seq "$runs"); do
  ours 'int4{scale=absmax}' >> "$work/absmax"
  theirs >> "$work/peer"
  ours 'int4{scale=absmax},embeddings(int4{scale=absmax})' >> "$work/all"
  ours 'int4' >> "$work/lsq"
done
peer_time=$(median < "$work/peer")
printf '%-58s %8s %8s\n' "command" "seconds" "speed"
row() { printf '%-58s %8.3f %7.2fx\n' "$1" "$2" "$(bc -l <<< "$peer_time / $2")"; }
row "llama-quantize --pure Q4_0 (embeddings too, no hash)" "$peer_time"
row "hlrc-opt int4{scale=absmax}" "$(median < "$work/absmax")"
row "hlrc-opt int4{scale=absmax}, embeddings too" "$(median < "$work/all")"
row "hlrc-opt int4 (grid search)" "$(median < "$work/lsq")"

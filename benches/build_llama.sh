#!/usr/bin/env bash
# Builds llama.cpp's llama-bench, llama-quantize and llama-perplexity from the sdist of llama-cpp-python.
#
# usage: benches/build_llama.sh [FOLDER]      (target/llama.cpp)
#
# Needs Python with pip, cmake and a C++ compiler. FOLDER/bin gets the programs, FOLDER/source the sources
# with convert_hf_to_gguf.py. What is there already is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-target/llama.cpp} version=${LLAMA_CPP_PYTHON:-}
python=${PYTHON:-python3}
mkdir -p "$out"
out=$(cd "$out" && pwd)
if [ ! -d "$out/source" ]; then
  "$python" -m pip download -q --no-binary :all: --no-deps --dest "$out" \
    "llama-cpp-python${version:+==$version}"
  tar xf "$out"/llama_cpp_python-*.tar.gz -C "$out"
  mv "$out"/llama_cpp_python-*/vendor/llama.cpp "$out/source"
fi
cmake -S "$out/source" -B "$out/build" -DCMAKE_BUILD_TYPE=Release -DLLAMA_CURL=OFF -DGGML_OPENMP=OFF > "$out/cmake.log"
cmake --build "$out/build" --target llama-bench llama-quantize llama-perplexity -j "${JOBS:-$(nproc)}" > "$out/build.log"
mkdir -p "$out/bin"
cp "$out"/build/bin/llama-{bench,quantize,perplexity} "$out/bin/"
# Shared libraries stay where the programs were linked against them.
"$out/bin/llama-bench" --help > /dev/null
echo "$out/bin"

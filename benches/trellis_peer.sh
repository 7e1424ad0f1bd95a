#!/bin/sh
# Builds a program that times another trellis encoder, for `cargo bench --bench trellis`:
#
#     benches/trellis_peer.sh path/to/tcqlib.cpp target/trellis_peer
#     TRELLIS_PEER=target/trellis_peer cargo bench --bench trellis
#
# The source is one that defines
#     extern "C" void tcq(const float *in, float *out, long sequences, int length, int L, int K);
# for codes of deviation 1. The program encodes 2^18 Gaussian samples with 2^12 states at 2 bits
# and prints microseconds per weight and the distortion.
set -eu
source=${1:?path to the C++ source of the other encoder}
out=${2:?path of the program to make}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat > "$dir/main.cpp" <<'CPP'
#include <chrono>
#include <cstdio>
#include <random>
#include <vector>
extern "C" void tcq(const float *, float *, long, int, int, int);
int main() {
  const long sequences = 1024;
  const float scale = 1.03f;
  std::mt19937_64 engine(1);
  std::normal_distribution<float> normal;
  std::vector<float> x(sequences * 256), y(x.size());
  for (float &v : x) v = normal(engine) / scale;
  auto start = std::chrono::steady_clock::now();
  tcq(x.data(), y.data(), sequences, 256, 12, 2);
  std::chrono::duration<double, std::micro> time = std::chrono::steady_clock::now() - start;
  double error = 0, square = 0;
  for (size_t i = 0; i < x.size(); i++) {
    error += double(x[i] - y[i]) * (x[i] - y[i]);
    square += double(x[i]) * x[i];
  }
  std::printf("%.3f us per weight, distortion %.5f\n", time.count() / x.size(), error / square);
}
CPP
c++ -O3 -march=native -fopenmp -ffast-math "$source" "$dir/main.cpp" -o "$out"

#!/usr/bin/env bash
# What the border to a plugin costs: built-in passes against the same sources compiled as a plugin
# (tests/plugins/moved), in this process and in processes of its own. The whole command, in turns, medians of
# five runs (or of $RUNS), page cache warm, two threads.
#
#   benches/plugins.sh MODEL [PIPELINE ...]
#
# Of a PIPELINE the passes int4, outlier and canonicalize are those of the plugin in the second and third run.
set -euo pipefail
model=$1 runs=${RUNS:-5}
shift
[ $# -gt 0 ] || set -- int4 'int4{scale=absmax}' outlier,int4
cd "$(dirname "$0")/.."
[ -n "${NO_BUILD:-}" ] || cargo build --release -q
tool=$PWD/target/release/hlrc-opt
plugin=$PWD/target/release/libmoved.so
[ -f "$plugin" ] || plugin=$PWD/target/release/libmoved.dylib
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

median() { sort -n | awk '{v[NR]=$1} END {print v[int((NR+1)/2)]}'; }
seconds() {
  local begun=$EPOCHREALTIME
  "$tool" "$model" -q -f --threads 2 -o "$work/$1.hlrc" --load-pass-plugin "$plugin" "${@:2}"
  bc -l <<< "$EPOCHREALTIME - $begun"
}
weights() { cat "$work/$1".hlrc/*.safetensors | sha256sum; }
number=0
printf '%-24s %9s %9s %9s %9s %9s\n' pipeline built-in plugin ratio isolated ratio
for pipeline in "$@"; do
  moved=$(sed -E 's/\b(int4|outlier|canonicalize)\b/\1-moved/g' <<< "$pipeline")
  number=$((number + 1))
  for run in $(seq 0 "$runs"); do
    own=$(seconds own -p "$pipeline")
    theirs=$(seconds theirs -p "$moved")
    apart=$(seconds apart -p "$moved" --isolate-plugins)
    [ "$run" -gt 0 ] || continue # the first warms up
    echo "$own" >> "$work/own$number"
    echo "$theirs" >> "$work/theirs$number"
    echo "$apart" >> "$work/apart$number"
  done
  [ "$(weights own)" = "$(weights theirs)" ] && [ "$(weights own)" = "$(weights apart)" ] || {
    echo "$pipeline: other bytes as a plugin"
    exit 1
  }
  own=$(median < "$work/own$number") theirs=$(median < "$work/theirs$number")
  apart=$(median < "$work/apart$number")
  printf '%-24s %8.3fs %8.3fs %8.3fx %8.3fs %8.3fx\n' "$pipeline" "$own" "$theirs" \
    "$(bc -l <<< "$theirs / $own")" "$apart" "$(bc -l <<< "$apart / $own")"
done

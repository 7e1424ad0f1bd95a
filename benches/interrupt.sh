#!/usr/bin/env bash
# Kills a run at random moments, resumes it each time, and compares the output's bytes with those of
# an undisturbed run, and of one thread with two.
#
#   benches/interrupt.sh MODEL [PIPELINE] [KILLS=10]
set -euo pipefail
model=$1 pipeline=${2:-lowrank{rank=32\},outlier,int4} kills=${3:-10}
cd "$(dirname "$0")/.."
tool=$PWD/target/release/hlrc-opt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
digest() { (cd "$1" && find . -type f | sort | xargs sha256sum | sha256sum | cut -c1-16); }

begun=$EPOCHREALTIME
"$tool" "$model" -p "$pipeline" --threads 2 -o "$work/whole.hlrc" -q
length=$(bc -l <<< "$EPOCHREALTIME - $begun")
"$tool" "$model" -p "$pipeline" --threads 1 -o "$work/one.hlrc" -q
done=0 resume=
while [ "$done" -lt "$kills" ]; do
  "$tool" "$model" -p "$pipeline" --threads 2 -o "$work/killed.hlrc" -q $resume &
  pid=$!
  sleep "$(bc -l <<< "$length * (0.02 + 0.25 * $RANDOM / 32768)")"
  kill -9 $pid 2> /dev/null && done=$((done + 1)) || true
  wait $pid 2> /dev/null || true
  if [ -d "$work/killed.hlrc" ]; then  # it finished before it was killed: begin again
    [ "$(digest "$work/killed.hlrc")" = "$(digest "$work/whole.hlrc")" ] || { echo "bytes differ"; exit 1; }
    rm -rf "$work/killed.hlrc"
  fi
  resume=
  if [ -f "$work/killed.hlrc.partial/journal.jsonl" ]; then
    resume=--resume
    printf 'kill %s: %s sites done\n' "$done" "$(($(wc -l < "$work/killed.hlrc.partial/journal.jsonl") - 1))"
  else
    printf 'kill %s: nothing done yet\n' "$done"
  fi
done
"$tool" "$model" -p "$pipeline" --threads 2 -o "$work/killed.hlrc" -q $resume
for out in whole one killed; do printf '%-7s %s\n' "$out" "$(digest "$work/$out.hlrc")"; done
[ "$(digest "$work/whole.hlrc")" = "$(digest "$work/killed.hlrc")" ] && [ "$(digest "$work/whole.hlrc")" = "$(digest "$work/one.hlrc")" ] && echo "the same bytes"

#!/usr/bin/env bash
# tools/kill_and_resume.sh LAPIDARY CONFIG [KILLS]: trains CONFIG once undisturbed and once with KILLS
# (20) kills by SIGKILL at random moments, each resumed, and compares the results bit by bit.
# CONFIG's output is replaced by folders beside it, `undisturbed` and `killed`.
set -euo pipefail
program=$(realpath "$1") config=$2 kills=${3:-20}
cd "$(dirname "$config")"
for run in undisturbed killed; do
  sed "s|^output = .*|output = \"$run\"|" "$(basename "$config")" > "$run.toml"
  rm -rf "$run"
done
start=$(date +%s.%N)
"$program" train undisturbed.toml 2> undisturbed.err
seconds=$(echo "$(date +%s.%N) - $start" | bc)
echo "undisturbed: $seconds s"
RANDOM=${SEED:-1}
done=0
while [ "$done" -lt "$kills" ]; do
  # A random share of twice what would spread all the kills over the run.
  wait=$(echo "scale=3; $seconds * 2 * $RANDOM / 32768 / ($kills + 1) + 0.05" | bc)
  "$program" train killed.toml --resume 2>> killed.err >&2 & pid=$!
  sleep "$wait"
  if kill -KILL "$pid" 2> /dev/null; then done=$((done + 1)); fi
  wait "$pid" 2> /dev/null || true
  if [ -e killed/model ] || [ -e killed/adapter ]; then echo "ended after $done kills"; break; fi
done
"$program" train killed.toml --resume 2>> killed.err
for file in model/model.safetensors adapter/adapter_model.safetensors; do
  [ -e "undisturbed/$file" ] || continue
  cmp "undisturbed/$file" "killed/$file" && echo "$file: identical after $done kills"
done
cut -d, -f1-6 undisturbed/log.csv > a.csv
cut -d, -f1-6 killed/log.csv > b.csv
cmp a.csv b.csv && echo "log.csv: identical but for the seconds ($(wc -l < a.csv) lines)"

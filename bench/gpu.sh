#!/usr/bin/env bash
# Everything a session with a GPU should do, in one call: the tests on the device, then every measurement that waits for
# one. Results go to bench/results/<device>/; copy them out of $OUT where the machine is not this one.
#
#     CORRIGENDA_DATA=/path/to/data bash bench/gpu.sh [python]
set -uo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
data=${CORRIGENDA_DATA:?"name the folder with zsre.jsonl and counterfact.jsonl"}
export HF_HUB_OFFLINE=1
failed=""

step() {
    echo "== $*"
    "$@" || failed+=$'\n'"  $*"
}

step "$python" -m corrigenda.editing.cli doctor
step "$python" -m pytest -q -x
step "$python" bench/editing_speed.py --edits "$data/zsre.jsonl" --device cuda
step "$python" bench/quality.py --edits "$data/zsre.jsonl" --at 100 500 1000 --device cuda
step "$python" bench/quality.py --edits "$data/counterfact.jsonl" --at 100 500 --template '{prompt}' --device cuda
step "$python" bench/quality.py --edits "$data/zsre.jsonl" --at 100 300 --method memoir --device cuda
step "$python" bench/quality.py --edits "$data/zsre.jsonl" --at 100 --dtype bfloat16 --device cuda --name quality-zsre-associative-bf16

if [ -n "${OUT:-}" ]; then cp -r bench/results "$OUT/"; fi
if [ -n "$failed" ]; then echo "failed:$failed"; exit 1; fi

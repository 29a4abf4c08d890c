#!/usr/bin/env bash
# Everything that waits for a GPU, in one call: build, tests, sanitizer, tuning, every measurement. Steps may be named, where
# a machine is lent for minutes at a time:
#
#     bash bench/gpu.sh                                  all of them
#     bash bench/gpu.sh build test ops                   some of them, in this order
#     CORRIGENDA_DATA=/path/to/data bash bench/gpu.sh quality
#
# PYTHON names the interpreter (its torch must be a CUDA build; nvcc must be on the PATH or under CUDA_HOME). Results go to
# bench/results/<device>/, and to $OUT as well where that is set. A step that fails is named at the end; the others run.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
results="bench/results/$("$python" -c 'import re, torch; print(re.sub(r"\W+", "_", torch.cuda.get_device_name()))')"
[ -n "$results" ] || { echo "$python sees no GPU" >&2; exit 1; }
mkdir -p "$results"
failed=""

step() {
    local start=$SECONDS
    echo "== $*"
    "$@" || failed+=$'\n'"  $*"
    echo "== took $((SECONDS - start)) s"
}

build() {
    CORRIGENDA_BUILD=cuda "$python" -m pip install --quiet --no-build-isolation --no-deps -e . &&
        "$python" -m corrigenda.editing.cli doctor
}

# The tests' own GPU is chosen by CORRIGENDA_TEST_DEVICE; captures of CUDA graphs are among them.
test_on_gpu() {
    CORRIGENDA_TEST_DEVICE=cuda "$python" -m pytest -q -x -m 'not model' tests/test_registration.py tests/test_cuda_graphs.py \
        tests/test_{topk_mask,mask_overlap,mask_route,token_overlap,masked_linear,associative_read,ties_merge,masked_sgd,delta_linear}.py
}

sanitize() {
    local tool
    for tool in memcheck racecheck; do
        CORRIGENDA_TEST_DEVICE=cuda compute-sanitizer --tool "$tool" --error-exitcode 1 --launch-timeout 60 \
            "$python" -m pytest -q -x tests/test_cuda_graphs.py -k native || return 1
    done
}

ops() {
    "$python" -m pytest bench/bench_ops.py --benchmark-only --benchmark-json "$results/ops.json" -q
}

stream() {
    local shape
    for shape in llama-3-8b mistral-7b; do
        "$python" bench/stream.py --shape "$shape" --method associative --edits 1000 --batch 64 || return 1
        "$python" bench/stream.py --shape "$shape" --method memoir --edits 40 --batch 1 || return 1
    done
}

profile() {
    if command -v nsys >/dev/null; then
        nsys profile --force-overwrite true --capture-range=cudaProfilerApi --capture-range-end=repeat \
            --cuda-graph-trace=node -o "$results/ops" "$python" bench/nsys.py &&
            nsys stats --report cuda_gpu_kern_sum --format csv "$results"/ops*.nsys-rep >"$results/kernels.csv"
    else
        echo "nsys is not here; skipped"
    fi
}

quality() {
    local data=${CORRIGENDA_DATA:?"name the folder with zsre.jsonl and counterfact.jsonl"}
    "$python" bench/editing_speed.py --edits "$data/zsre.jsonl" --device cuda &&
        "$python" bench/quality.py --edits "$data/zsre.jsonl" --at 100 500 1000 --device cuda &&
        "$python" bench/quality.py --edits "$data/counterfact.jsonl" --at 100 500 --template '{prompt}' --device cuda &&
        "$python" bench/quality.py --edits "$data/zsre.jsonl" --at 100 300 --method memoir --device cuda &&
        "$python" bench/quality.py --edits "$data/zsre.jsonl" --at 100 --dtype bfloat16 --device cuda \
            --name quality-zsre-associative-bf16
}

[ $# -gt 0 ] || set -- build test sanitize tune ops stream profile quality
for name in "$@"; do
    case $name in
        test) step test_on_gpu ;;
        tune) step "$python" -m corrigenda.kernels.tuning ;;
        build | sanitize | ops | stream | profile | quality) step "$name" ;;
        *) echo "$name is no step: build, test, sanitize, tune, ops, stream, profile, quality" >&2; exit 2 ;;
    esac
    if [ -n "${OUT:-}" ]; then
        cp "$results"/*.json kernels/configs/*.json "$OUT/" 2>/dev/null
    fi
done
if [ -n "$failed" ]; then echo "failed:$failed"; exit 1; fi

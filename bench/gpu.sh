#!/usr/bin/env bash
# Everything that waits for a GPU, in one call: build, tests, every measurement, sanitizers, tuning. For machines that are
# lent for minutes: steps come in the order of what they are worth, each has a limit, and what is there is kept at once.
#
#     bash bench/gpu.sh                                  all of them
#     bash bench/gpu.sh build test ops                   some of them, in this order
#     BUDGET=540 bash bench/gpu.sh                       what fits into so many seconds
#     REHEARSE=1 bash bench/gpu.sh                       without a GPU: the steps that can run on a CPU, on small cases
#
# PYTHON names the interpreter (its torch must be a CUDA build; nvcc must be on the PATH or under CUDA_HOME). CORRIGENDA_DATA
# names the folder with zsre.jsonl and counterfact.jsonl, for the step quality. CORRIGENDA_COMMIT names the commit where the
# tree is a copy without its history. Results go to bench/results/<device>/; with OUT set, one archive of them, of tuned
# configurations and of every step's log lies there after each step.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

# Seconds that a step may take. An H100 machine with 16 cores is reckoned with.
declare -A LIMIT=([build]=150 [test]=200 [ops]=200 [stream]=240 [layer]=60 [trace]=60 [sanitize]=150 [tune]=200
    [profile]=90 [quality]=500)
ORDER=(build test ops stream layer trace sanitize tune profile quality)

build() {
    CORRIGENDA_BUILD=cuda "$python" -m pip install --quiet --no-build-isolation --no-deps -e . &&
        "$python" -m corrigenda.editing.cli doctor
}

# The tests' own GPU is chosen by CORRIGENDA_TEST_DEVICE; captures of CUDA graphs are among them.
test() {
    local many=""
    "$python" -c 'import xdist' 2>/dev/null && many="-n 8"
    # shellcheck disable=SC2086
    CORRIGENDA_TEST_DEVICE=cuda "$python" -m pytest -q -m 'not model' $many -p no:cacheprovider --maxfail=40 \
        tests/kernels/test_cuda_graphs.py tests/kernels/test_registration.py \
        tests/kernels/test_{topk_mask,mask_overlap,mask_route,token_overlap,masked_linear,associative_read,ties_merge,masked_sgd,delta_linear,label_losses}.py
}

ops() { "$python" bench/gpu_ops.py; }

stream() {
    "$python" bench/stream.py --shape llama-3-8b --dense 1 &&
        "$python" bench/stream.py --shape mistral-7b --methods associative memoir
}

layer() { "$python" bench/layer.py; }

trace() { "$python" bench/trace.py; }

sanitize() {
    local tool
    for tool in memcheck racecheck; do
        CORRIGENDA_TEST_DEVICE=cuda compute-sanitizer --tool "$tool" --error-exitcode 1 --launch-timeout 60 \
            "$python" -m pytest -q -x tests/kernels/test_cuda_graphs.py -k native || return 1
    done
}

tune() { "$python" -m corrigenda.kernels.tuner; }

profile() {
    command -v nsys >/dev/null || { echo "nsys is not here; trace.json has the kernels"; return 0; }
    nsys profile --force-overwrite true --capture-range=cudaProfilerApi --capture-range-end=repeat \
        --cuda-graph-trace=node -o "$logs/ops" "$python" bench/nsys.py &&
        nsys stats --report cuda_gpu_kern_sum --format csv "$logs"/ops*.nsys-rep >"$results/kernels.csv"
}

quality() {
    local data=${CORRIGENDA_DATA:?"name the folder with zsre.jsonl and counterfact.jsonl"}
    "$python" bench/quality.py --edits "$data/zsre.jsonl" --at 100 500 1000 --device cuda &&
        "$python" bench/quality.py --edits "$data/zsre.jsonl" --at 100 --dtype bfloat16 --device cuda \
            --name quality-zsre-associative-bf16 &&
        "$python" bench/editing_speed.py --edits "$data/zsre.jsonl" --device cuda &&
        "$python" bench/quality.py --edits "$data/counterfact.jsonl" --at 100 500 --template '{prompt}' --device cuda &&
        "$python" bench/quality.py --edits "$data/zsre.jsonl" --at 100 300 --method memoir --device cuda
}

# The same scripts on a CPU and at a size that it can bear: what fails here would fail on the GPU, after minutes of it.
rehearse() {
    local small="$logs/results"
    "$python" bench/stream.py --shape small --edits 3 --dense 1 --results "$small" &&
        "$python" bench/layer.py --stored 100 --sequences 2 --results "$small" &&
        "$python" -m pytest -q -p no:cacheprovider -x tests/kernels/test_registration.py -k delta_linear
}

# Asked for one step, in a process that a limit can end.
if [ "${1:-}" = --step ]; then
    logs=$3 results=$4
    "$2"
    exit
fi

device=$("$python" -c 'import re, torch; print(re.sub(r"\W+", "_", torch.cuda.get_device_name()))' 2>/dev/null)
if [ -n "${REHEARSE:-}" ]; then
    device=cpu
    LIMIT[rehearse]=600
    set -- rehearse
elif [ -z "$device" ]; then
    echo "$python sees no GPU; REHEARSE=1 runs what a CPU can" >&2
    exit 1
fi
results=bench/results/$device logs=bench-work/gpu-logs
mkdir -p "$results" "$logs"
[ $# -gt 0 ] || set -- "${ORDER[@]}"
for name in "$@"; do
    [ -n "${LIMIT[$name]:-}" ] || { echo "$name is no step: ${ORDER[*]}" >&2; exit 2; }
done

failed=""
for name in "$@"; do
    limit=${LIMIT[$name]}
    if [ -n "${BUDGET:-}" ]; then
        left=$((BUDGET - SECONDS - 10))
        [ "$left" -ge 20 ] || { failed+=$'\n'"  $name: no time was left"; continue; }
        limit=$((left < limit ? left : limit))
    fi
    start=$SECONDS
    echo "== $name, $limit s at most"
    timeout --kill-after=10 "$limit" bash "$0" --step "$name" "$logs" "$results" 2>&1 | tee "$logs/$name.log"
    status=${PIPESTATUS[0]}
    [ "$status" -eq 0 ] || failed+=$'\n'"  $name: status $status, $logs/$name.log"
    echo "== $name took $((SECONDS - start)) s"
    if [ -n "${OUT:-}" ]; then
        tar czf "$OUT/gpu-results.tar.gz" "$results" kernels/configs "$logs"/*.log
    fi
done
if [ -n "$failed" ]; then echo "failed:$failed"; exit 1; fi

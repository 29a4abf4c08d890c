#!/usr/bin/env bash
# Compile every CUDA source for the GPUs that a build targets, without a GPU; a kernel that spills registers fails.
# Prints the registers and the shared memory of each kernel. Arguments: the sources, or none for all of csrc/cuda.
set -euo pipefail
cd "$(dirname "$0")/.."

nvcc=$(command -v "${NVCC:-nvcc}" || ls "${CUDA_HOME:-/usr/local/cuda}"/bin/nvcc /usr/local/cuda-*/bin/nvcc 2>/dev/null | tail -1) || true
if [ -z "$nvcc" ]; then
    echo "cuda-check skipped: there is no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda*"
    exit 0
fi

sources=("$@")
[ $# -gt 0 ] || sources=(csrc/cuda/*.cu)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for source in "${sources[@]}"; do
    log=$work/log
    # sm_80: A100; sm_90a: H100, H200; sm_100: B200; and PTX for whatever comes after.
    if ! "$nvcc" -c "$source" -o "$work/object.o" -O3 -std=c++17 -Xcompiler -fPIC --threads 2 \
        -Xptxas -v,-warn-spills -Xptxas -Werror \
        -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a \
        -gencode=arch=compute_100,code=sm_100 -gencode=arch=compute_80,code=compute_80 >"$log" 2>&1; then
        grep -vE '^ptxas info' "$log" >&2 || true
        echo "$source does not compile, or spills registers" >&2
        exit 1
    fi
    echo "$source"
    # ptxas names the kernel on one line and what it uses some lines later.
    awk '/Compiling entry function/ { split($0, part, "\047"); name = part[2]; arch = part[4] }
         /Used [0-9]+ registers/ {
             used = $0; sub(/.*Used /, "", used); sub(/, [0-9]+ bytes cmem.*/, "", used)
             printf "  %-8s %-60s %s\n", arch, name, used
         }' "$log" | { command -v c++filt >/dev/null && c++filt -p || cat; } | sort
done

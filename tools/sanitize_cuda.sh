#!/usr/bin/env bash
# The CUDA kernels in the emulator, in one order of threads, under the address and undefined-behaviour sanitizers:
# reads and writes out of bounds, of shared memory too, misaligned loads, overflows. Minutes; needs g++, no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-.venv/bin/python}
export CORRIGENDA_EMULATE_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -g"
export ASAN_OPTIONS=detect_leaks=0 # of Python's
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)" \
    "$python" -m pytest -q -p no:cacheprovider tests/kernels/test_cuda_emulated*.py -k "order1 and not large"

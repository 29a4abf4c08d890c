#!/usr/bin/env bash
# The CPU kernels under the address and undefined-behaviour sanitizers: built so in a temporary folder, and every op's tests
# of the native backend run with them, in every instruction set that this processor has. Minutes; needs g++.
set -euo pipefail
cd "$(dirname "$0")/.."

python=$(realpath -s "${PYTHON:-.venv/bin/python}")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
CXXFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1" CORRIGENDA_BUILD=cpu \
    "$python" setup.py -q build_ext --build-lib "$folder/built" --build-temp "$folder/objects"
mkdir -p "$folder/path/corrigenda"
ln -s "$PWD"/{editing,serving} "$folder/path/corrigenda/"
cp -r kernels "$folder/path/corrigenda/"
cp "$folder/built/corrigenda/kernels/_C.so" "$folder/path/corrigenda/kernels/"
export PYTHONPATH="$folder/path" OMP_NUM_THREADS=1
export ASAN_OPTIONS=detect_leaks=0 # of Python's
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)" \
    "$python" -m pytest -q -p no:cacheprovider -k native \
    tests/kernels/test_{topk_mask,mask_overlap,mask_route,token_overlap,nearest_key,masked_linear,associative_read,adapter_linear,ties_merge,masked_sgd,delta_linear,label_losses}.py

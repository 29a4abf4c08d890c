#!/usr/bin/env bash
# The CPU kernels under the address and undefined-behaviour sanitizers: built so in a temporary folder, and every op's tests
# of the native backend run with them, in every instruction set that this processor has. Minutes; needs g++.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/native_kernels.sh

python=$(realpath -s "${PYTHON:-.venv/bin/python}")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export CXXFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1"
build_kernels "$folder" "$python"
export ASAN_OPTIONS=detect_leaks=0 # of Python's
export LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)"
test_kernels "$folder" "$python"

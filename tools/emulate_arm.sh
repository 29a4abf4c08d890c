#!/usr/bin/env bash
# The CPU kernels on arm64, without such a machine: cross-compiled, and every op's tests of the native backend run with them in
# Debian's Python and the torch that is published for arm64, under emulation. Minutes. Needs root and, of Debian: debootstrap,
# g++-aarch64-linux-gnu and qemu-user-static. The first run fetches 3 GB into .venv-arm, where they take 5.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/native_kernels.sh

python=$(realpath -s "${PYTHON:-.venv/bin/python}")
root=$PWD/.venv-arm
for tool in debootstrap aarch64-linux-gnu-g++ qemu-aarch64-static; do
    [ -n "$(PATH=$PATH:/usr/sbin type -P "$tool")" ] || { echo "$tool is needed, and Debian has it" >&2; exit 1; }
done

if [ ! -e "$root/.installed" ]; then
    # Extracted only: what is emulated is one process of Python, which runs no program of this system.
    PATH=$PATH:/usr/sbin debootstrap --download-only --arch=arm64 --variant=minbase \
        --include=python3.11,python3-distutils,libstdc++6 bookworm "$root"
    for package in "$root"/var/cache/apt/archives/*.deb; do
        dpkg-deb -x "$package" "$root"
    done
    rm -r "$root/var/cache/apt/archives"
    platforms=(--platform manylinux2014_aarch64)
    for minor in {17..36}; do
        platforms+=(--platform "manylinux_2_${minor}_aarch64")
    done
    "$python" -m pip install -q --no-compile --no-cache-dir --target "$root/usr/local/lib/python3.11/dist-packages" \
        --only-binary :all: "${platforms[@]}" --python-version 3.11 "${TORCH:-torch==2.13.0}" numpy pytest hypothesis
    # torch reads there which processor it has, and fails with the words of another architecture's.
    for ((cpu = 0; cpu < $(nproc --all); cpu++)); do
        printf '%s\t: %s\n' processor "$cpu" Features "fp asimd atomics fphp asimdhp asimdrdm asimddp" \
            "CPU implementer" 0x41 "CPU architecture" 8 "CPU variant" 0x4 "CPU part" 0xd0c "CPU revision" 1
        echo
    done > "$root/proc/cpuinfo"
    touch "$root/.installed"
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
arm=(qemu-aarch64-static -cpu neoverse-n1 -L "$root" "$root/usr/bin/python3.11")
CXX=aarch64-linux-gnu-g++ build_kernels "$folder" "${arm[@]}" # the compiler itself is not emulated
test_kernels "$folder" "${arm[@]}"

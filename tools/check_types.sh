#!/usr/bin/env bash
# mypy over the three packages under the names that they are installed by: the folders are mapped, and it reads no such map.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
packages="$(mktemp -d)"
trap 'rm -rf "$packages"' EXIT
mkdir "$packages/corrigenda"
for folder in kernels editing serving; do ln -s "$root/$folder" "$packages/corrigenda/$folder"; done
cd "$packages"
mypy --config-file "$root/pyproject.toml" --cache-dir "$root/.mypy_cache" --namespace-packages --explicit-package-bases corrigenda

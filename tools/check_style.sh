#!/usr/bin/env bash
# The house rules that no linter knows. Exits 1 and names each line that breaks one.
set -uo pipefail
cd "$(dirname "$0")/.."
status=0

# ban WHY PATTERN FOLDER...: no line of a Python file there may match
ban() {
    local why=$1 pattern=$2
    shift 2
    if grep -rnE --include='*.py' -- "$pattern" "$@"; then
        echo "  ^ $why" >&2
        status=1
    fi
}

ban "tuned configs are data (kernels/configs): autotuning at run time stalls and breaks graph capture" \
    '^[^#]*@triton\.autotune' kernels editing serving bench tests
ban "register with torch.library.Library.define/impl: custom_op costs three times as much per call" \
    '^[^#]*custom_op\(' kernels editing serving bench tests
ban "inside kernels/ import relatively: an absolute import can load a second copy" \
    '^[^#]*(from|import) +corrigenda(\.kernels| +import +kernels)' kernels

if [ -e kernels/__init__.py ]; then
    echo "kernels/__init__.py must not exist: it would shadow Hugging Face's package 'kernels'" >&2
    status=1
fi

while IFS= read -r -d '' file; do
    if [ -n "$(tail -c 1 "$file" 2>/dev/null)" ]; then
        echo "$file: no newline at the end" >&2
        status=1
    fi
done < <(git ls-files -z --cached --others --exclude-standard -- '*.py' '*.md' '*.toml' '*.yaml' '*.sh' '*.in' Makefile .ci)

exit $status

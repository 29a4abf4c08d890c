"""What AMX does for many tokens in bfloat16: writes bench/results/cpu/many-tokens.json.

    OMP_NUM_THREADS=1 python bench/many_tokens.py

As `claims.py` measures: the ops that have products of matrices, beside the same with AVX-512 and the best form of
torch, whose own products use AMX too.
"""

from __future__ import annotations

import torch
from claims import measure
from op_cases import delta_linear, masked_linear, masked_linear_backward
from record import provenance, results_folder, write_json

from corrigenda.kernels import native

SHAPES = ((4, 1), (8, 1), (32, 1), (64, 1), (256, 1), (4, 4), (8, 8), (16, 16), (32, 32), (64, 64), (256, 256))
CASES = [
    *(masked_linear(*shape) for shape in SHAPES),
    *(masked_linear_backward(*shape) for shape in ((64, 1), (8, 8), (32, 32), (64, 64), (256, 256))),
    *(delta_linear(*shape) for shape in ((1, 1), (32, 1), (8, 8), (8, 50))),
]


def main():
    if native.absent("cpu") or not torch.ops.corrigenda_native.select_cpu_instructions("amx"):
        raise SystemExit("There is nothing to measure: this machine does not run the amx kernels.")
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    rows = {}
    for case in CASES:
        rows[str(case)] = row = measure(case, False, ("amx", "avx512"))
        print(f"{case}: torch {min(row['torch_ms'].values()):.2f} ms, {row['ratios']}", flush=True)
        write_json(results_folder() / "many-tokens.json", {**provenance(), "ops": rows})


if __name__ == "__main__":
    main()

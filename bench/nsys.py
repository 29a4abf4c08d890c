"""Every op once in an NVTX range, and a few decode steps of a patched layer: what `nsys` is pointed at.

    nsys profile --capture-range=cudaProfilerApi --cuda-graph-trace=node -o corrigenda python bench/nsys.py
    nsys stats --report cuda_gpu_kern_sum --report nvtx_gpu_proj_sum --format csv corrigenda.nsys-rep

`ncu --nvtx --nvtx-include "mask_overlap/" python bench/nsys.py --only mask_overlap` looks into one op's kernels.
"""

from __future__ import annotations

import argparse

import torch
from op_cases import CASES

from corrigenda.kernels import dispatch


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", default=list(dispatch.TABLE))
    parser.add_argument("--backend", default="auto", choices=dispatch.CHOICES)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def main():
    args = arguments()
    if not torch.cuda.is_available():
        raise SystemExit("There is no GPU to profile on.")
    with dispatch.use(args.backend), torch.no_grad():
        for case in CASES:
            if case.op not in args.only:
                continue
            given = case.build("cuda")
            for _ in range(3):
                case.function(*given)
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
            with torch.cuda.nvtx.range(f"{case.op}/{case.name}"):
                for _ in range(args.repeats):
                    case.function(*given)
                torch.cuda.synchronize()
            torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()

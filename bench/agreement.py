"""Whether a backend computes what the reference computes on a case: nothing that is wrong is timed."""

from __future__ import annotations

import torch

from corrigenda.kernels import dispatch, reference


def own(case, arguments):
    """The arguments, with a copy of the one that the op writes."""
    return [a.clone() if case.writes_first and i == 0 else a for i, a in enumerate(arguments)]


def run(case, arguments, backend):
    """The op's outputs on `backend`, a list, and none of the arguments changed."""
    given = own(case, arguments)
    with dispatch.use(backend), torch.no_grad():
        result = case.function(*given)
    return [given[0]] if case.writes_first else listed(result)


def listed(result):
    return [result] if torch.is_tensor(result) else list(result)


def wrong(case, arguments, backend):
    """ "" if `backend` computes what the reference computes on `arguments`, else what differs."""
    return differs(case, run(case, arguments, "reference"), run(case, arguments, backend))


def differs(case, expected, actual):
    """ "" if two lists of outputs agree: integers exactly, floats to rounding."""
    for a, b in zip(expected, actual):
        if a.dtype.is_floating_point:
            error = float((a.double() - b.double()).norm() / a.double().norm().clamp(min=1e-30))
            difference = "" if error < (2**-7 if a.dtype == torch.bfloat16 else 1e-4) else f"relative error {error:.2e}"
        elif case.op == "topk_mask":  # rounding of the mean may exchange entries that are as good as equal
            bits = [reference.unpack_mask(mask, 32 * mask.shape[1]).int() for mask in (a, b)]
            exchanged = int((bits[0] - bits[1]).abs().sum(1).max())
            difference = "" if exchanged <= 8 else f"{exchanged} bits of a mask"
        else:
            difference = "" if torch.equal(a, b) else f"{int((a != b).sum())} entries"
        if difference:
            return difference
    return ""

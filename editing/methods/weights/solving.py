"""The linear algebra of closed forms, cheap and exact: factor once, and solve in the number of keys."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import CorrigendaError


class Cholesky:
    """A symmetric positive definite matrix, fp64 `[D, D]`, factored once."""

    def __init__(self, matrix: Tensor) -> None:
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed):  # fewer tokens than the keys are wide: what was not seen gets the least that counts
            least = 1e-6 * matrix.diagonal().mean()
            factor, failed = torch.linalg.cholesky_ex(matrix + torch.diag(least.expand(len(matrix))))
        if int(failed):
            raise CorrigendaError("The covariance of keys is not positive: compute it over more text.")
        self.factor = factor

    def solve(self, columns: Tensor) -> Tensor:
        """`matrix^-1 columns`, fp64 `[D, n]`."""
        return torch.cholesky_solve(columns, self.factor)

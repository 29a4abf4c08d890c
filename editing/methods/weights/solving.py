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
            least = 1e-6 * matrix.trace()  # more than rounding to float32 takes from any direction
            factor, failed = torch.linalg.cholesky_ex(matrix + torch.diag(least.expand(len(matrix))))
        if int(failed):
            raise CorrigendaError("The covariance of keys is not positive: compute it over more text.")
        self.factor = factor

    def solve(self, columns: Tensor) -> Tensor:
        """`matrix^-1 columns`, fp64 `[D, n]`."""
        return torch.cholesky_solve(columns, self.factor)

    def solve_beside(self, keys: Tensor, before: Tensor | None = None) -> Tensor:
        """`(matrix + K K^T)^-1 keys`, fp64 `[D, n]`, for K the keys, and those `before` `[D, m]`.

        Push-through: with B = matrix^-1 K it is the last n columns of B (I + K^T B)^-1, a solve of n + m unknowns.
        """
        own = keys.shape[1]
        every = keys if before is None else torch.cat([before, keys], 1)
        solved = self.solve(every)
        gram = every.T @ solved
        gram.diagonal().add_(1)
        return solved @ torch.linalg.solve(gram, torch.eye(len(gram), dtype=gram.dtype, device=gram.device)[:, -own:])


def ridge_columns(basis: Tensor, keys: Tensor, ridge: float) -> Tensor:
    """`(B B^T + ridge I)^-1 B`, fp64 `[m, n]`, of `B = basis^T keys`, for a basis `[D, m]`; back in `D` directions.

    By push-through B (B^T B + ridge I)^-1: a solve of as many unknowns as there are keys.
    """
    projected = basis.T @ keys
    gram = projected.T @ projected
    gram.diagonal().add_(ridge)
    return basis @ (projected @ torch.linalg.inv(gram))


def dual_ridge(keys: Tensor, values: Tensor) -> Tensor:
    """`(K K^T + I)^-1 V` fp32 `[n, d]`, of keys fp32 `[n, D]` and values `[n, d]`, solved in fp64.

    K^T times it is (K^T K + I)^-1 K^T V, the ridge regression of V on K, which as it stands is a solve of D unknowns.
    """
    gram = (keys @ keys.T).double()  # sums of D products: as exact in fp32 as the keys are
    gram.diagonal().add_(1)
    return torch.cholesky_solve(values.double(), torch.linalg.cholesky(gram)).float()

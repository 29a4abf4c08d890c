"""One set of arguments for each registered op."""

import torch
from cases import bank, dyadic, normal, random_masks, random_route

# No two sizes equal, or a compiled graph would take one for the other and be compiled again.
TOKENS, WIDTH, OUTPUTS = 7, 40, 5


def arguments(op, tokens=TOKENS):
    """Arguments of the registered op, defaults spelled out."""
    y, x = normal(tokens, OUTPUTS, seed=0), normal(tokens, WIDTH, seed=1)
    masks, route = random_masks(4, WIDTH, seed=2), random_route(tokens, 3, seed=3)
    keys, values, pages, rows = bank([2, 9, 1], WIDTH, OUTPUTS, seed=4)
    bound = torch.tensor([0, 2, tokens], dtype=torch.int32)
    linear = (x, normal(WIDTH, OUTPUTS, seed=5), masks, route)
    first = torch.arange(tokens) % 3 == 0
    read = (x, first, keys.nan_to_num(), values.nan_to_num(), pages, rows, route, normal(WIDTH, seed=6), 10.0)
    group = torch.zeros(4, dtype=torch.int32)
    return {
        "topk_mask": (x, bound, 7, torch.ones(tokens), normal(WIDTH, seed=7), torch.arange(WIDTH).flip(0)),
        "mask_overlap": (masks, masks, torch.tensor([3], dtype=torch.int32), group, group),
        "mask_route": (
            *(x, bound, 7, None, None, None, masks[:, : WIDTH // 32 + 1]),
            *(torch.tensor([2], dtype=torch.int32), torch.tensor([3], dtype=torch.int32), group[:2], group),
        ),
        "token_overlap": (
            torch.tensor([[3, 1, -1], [2, 3, 0]], dtype=torch.int32),
            torch.tensor([[3, 2], [1, -1], [4, 0], [3, 1]], dtype=torch.int32),
            torch.tensor([5, 9, 1, 40, 7], dtype=torch.int32),
            0.25,
            torch.tensor([3], dtype=torch.int32),
            group[:2],
            group,
        ),
        "nearest_key": (
            *(x, normal(4, WIDTH, seed=13), torch.full((4,), 8.0), False),
            *(torch.tensor([3], dtype=torch.int32), torch.zeros(tokens, dtype=torch.int32), group),
        ),
        "masked_linear": (y, *linear),
        "masked_linear_": (y, *linear),
        "masked_linear_backward": (y, *linear, [True, True]),
        "associative_read": (y, *read, None),
        "associative_read_": (y, *read, None),
        "associative_read_backward": (y, *read, [True, False, True]),
        "adapter_linear_": (
            *(y, x, normal(4, 2, WIDTH, seed=14), normal(4, 2, OUTPUTS, seed=15)),
            *(torch.tensor([3, 0, 2], dtype=torch.int32), route),
        ),
        "ties_merge": (dyadic(2, 4, tokens, seed=8), torch.ones(2), [0.5, 0.7]),
        "masked_sgd_": (
            *(normal(WIDTH, OUTPUTS, seed=9), x, y, random_masks(WIDTH, OUTPUTS, seed=10)),
            *(normal(WIDTH, OUTPUTS, seed=11), 0.5, 1e-3, False, 1.0),
        ),
        "delta_linear": (x, y, normal(WIDTH, OUTPUTS, seed=9), bound, torch.ones(tokens), True, 100),
        "label_losses": (x, normal(50, WIDTH, seed=12), torch.arange(tokens) * 3),
    }[op]


def flat(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)

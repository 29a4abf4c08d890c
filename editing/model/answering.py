"""Many prompts answered in batches of like length."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..backbone.frozen import length_groups
from ..edits.tokenizer import Tokenizer
from .answers import Answer, Provenance, laid_out


def answered(
    rows: Sequence[Sequence[int]],
    max_new_tokens: Sequence[int],
    batch_size: int,
    tokenizer: Tokenizer,
    device: torch.device,
    generate: Callable[[Tensor, Tensor, int, Sequence[int]], tuple[Tensor, list[Provenance]]],
) -> list[Answer]:
    """Continuations of tokenised prompts, each with its own limit of new tokens, in the order of `rows`.

    generate: takes left-padded ids and their mask, int64 `[batch, length]` on `device`, how many tokens may follow, and
    which of `rows` these are; gives ids with what follows, and where each row's answer comes from.
    """
    answers: dict[int, Answer] = {}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    longest = max(map(len, rows), default=1)
    for group in length_groups([len(row) for row in rows], batch_size * longest):
        for part in (group[i : i + batch_size] for i in range(0, len(group), batch_size)):
            width = max(len(rows[i]) for i in part)
            padded = [[pad] * (width - len(rows[i])) + list(rows[i]) for i in part]
            real = [[0] * (width - len(rows[i])) + [1] * len(rows[i]) for i in part]
            ids = torch.tensor(padded, dtype=torch.int64, device="cpu").to(device)
            mask = torch.tensor(real, dtype=torch.int64, device="cpu").to(device)
            output, sources = generate(ids, mask, max(max_new_tokens[i] for i in part), part)
            for i, new, source in zip(part, output[:, width:].tolist(), sources):
                text = tokenizer.decode(new[: max_new_tokens[i]], skip_special_tokens=True)
                answers[i] = Answer(laid_out(text, source.edit), source.edit, source.score, source)
    return [answers[i] for i in range(len(rows))]

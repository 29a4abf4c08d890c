"""token_overlap in Triton: a bitmap of each query's tokens, then one pass over the stored rows.

The bitmap of a vocabulary of 128k is 16 KB and stays in the first-level cache, so that the pass costs one look-up
per stored token, however long the query is; comparing each pair would cost their product.
"""

import torch
import triton
import triton.language as tl

from . import tuning
from .triton_helpers import ranked, ranked_row, ranked_score, visible_rows

MAXIMUM_PROGRAMS = 512  # share the rows of one query, so that one program can reduce what they leave


@triton.jit
def _index_kernel(
    query_ptr,  # [batch, length] int32, -1 where padded
    rarity_ptr,  # [vocabulary] int32
    bitmap_ptr,  # [batch, places] int32, written: 32 tokens a word
    mass_ptr,  # [batch] int32, written
    ticket_ptr,  # [batch] int32, cleared
    length, places,
    BLOCK_Q: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Bitmap [B, places] and mass [B] of one query's tokens; clears the counter of the pass that follows."""
    b = tl.program_id(0)
    tokens = query_ptr + b.to(tl.int64) * length
    bits = bitmap_ptr + b.to(tl.int64) * places
    for start in range(0, places, BLOCK_V):
        place = start + tl.arange(0, BLOCK_V)
        tl.store(bits + place, tl.zeros([BLOCK_V], tl.int32), mask=place < places)
    tl.debug_barrier()
    total = tl.zeros([BLOCK_Q], tl.int32)
    for start in range(0, length, BLOCK_Q):
        at = start + tl.arange(0, BLOCK_Q)
        token = tl.load(tokens + at, mask=at < length, other=-1)
        real = token >= 0
        total += tl.load(rarity_ptr + token, mask=real, other=0)
        one = tl.full([BLOCK_Q], 1, tl.int32)
        tl.atomic_or(bits + token // 32, one << (token % 32), mask=real, sem="relaxed")
    tl.store(mass_ptr + b, tl.sum(total, 0))
    tl.store(ticket_ptr + b, 0)


@triton.jit
def _two_best(keys):
    """The largest key and the largest of the others; keys carry their row, so none but 0 occurs twice."""
    best = tl.max(keys, 0)
    return best, tl.max(tl.where(keys == best, 0, keys), 0)


@triton.jit
def _masses(
    stored_ptr, rarity_ptr, bits_ptr, row, inside, length, BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr
):  # fmt: skip
    """Of each row of a tile of stored [rows, length]: the mass that it shares with bits_ptr [places], and its own."""
    own = tl.zeros([BLOCK_N, BLOCK_L], tl.int32)
    shared = tl.zeros([BLOCK_N, BLOCK_L], tl.int32)
    for start in range(0, length, BLOCK_L):
        at = start + tl.arange(0, BLOCK_L)
        token = tl.load(
            stored_ptr + row.to(tl.int64)[:, None] * length + at[None, :],
            mask=inside[:, None] & (at < length)[None, :],
            other=-1,
        )  # [BN, BL]
        real = token >= 0
        weight = tl.load(rarity_ptr + token, mask=real, other=0)
        word = tl.load(bits_ptr + token // 32, mask=real, other=0)
        own += weight
        shared += tl.where((word >> (token & 31)) & 1 == 1, weight, 0)
    return tl.sum(shared, 1), tl.sum(own, 1)


@triton.jit
def _reduce_programs(index_ptr, score_ptr, runner_up_ptr, left_ptr, programs, busy, PROGRAMS: tl.constexpr):
    """What the last program of a query does: reduce left_ptr [2, programs], of those that were busy, to the result."""
    program = tl.arange(0, PROGRAMS)
    best, second = _two_best(tl.load(left_ptr + program, mask=program < busy, other=0))
    seconds = tl.load(left_ptr + programs + program, mask=program < busy, other=0)
    second = tl.maximum(second, tl.max(seconds, 0))
    tl.store(index_ptr, ranked_row(best))
    tl.store(score_ptr, ranked_score(best).to(tl.float32, bitcast=True))
    tl.store(runner_up_ptr, ranked_score(second).to(tl.float32, bitcast=True))


@triton.jit
def _match_kernel(
    stored_ptr,  # [rows, length] int32, -1 where padded
    rarity_ptr,  # [vocabulary] int32
    bitmap_ptr,  # [batch, places] int32
    mass_ptr,  # [batch] int32
    valid_ptr,  # [1] int32, or None
    query_group_ptr,  # [batch] int32, or None
    stored_group_ptr,  # [rows] int32, or None
    partial_ptr,  # [batch, 2, programs] int64, scratch
    ticket_ptr,  # [batch] int32, zeros: programs that have finished
    index_ptr,  # [batch] int32, written
    score_ptr,  # [batch] float32, written
    runner_up_ptr,  # [batch] float32, written
    extra, rows, length, places,
    BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Two best rows of query b; the last program to finish reduces what each left in partial_ptr."""
    program, programs, b = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    visible = visible_rows(valid_ptr, rows)
    tiles = tl.cdiv(visible, BLOCK_N)
    busy = tl.maximum(tl.minimum(programs, tiles), 1)
    if program >= busy:
        return
    bits = bitmap_ptr + b.to(tl.int64) * places
    query_mass = tl.load(mass_ptr + b)
    best = tl.full((), 0, tl.int64)
    second = tl.full((), 0, tl.int64)
    for tile in range(program, tiles, programs):
        row = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = row < visible
        common, own = _masses(stored_ptr, rarity_ptr, bits, row, inside, length, BLOCK_N, BLOCK_L)
        whole = own.to(tl.float32) + extra * (query_mass - common).to(tl.float32)
        ratio = tl.where(whole > 0, tl.div_rn(common.to(tl.float32), whole), 0.0)
        seen = inside
        if query_group_ptr is not None:
            seen &= tl.load(stored_group_ptr + row, mask=inside, other=0) == tl.load(query_group_ptr + b)
        # Scores are not negative, so their bits order as they do.
        top, next_top = _two_best(ranked(ratio.to(tl.int32, bitcast=True), row, seen))
        second = tl.maximum(tl.maximum(second, next_top), tl.minimum(best, top))
        best = tl.maximum(best, top)
    left = partial_ptr + b.to(tl.int64) * 2 * programs
    tl.store(left + program, best)
    tl.store(left + programs + program, second)
    tl.debug_barrier()
    if tl.atomic_add(ticket_ptr + b, 1) == busy - 1:
        _reduce_programs(index_ptr + b, score_ptr + b, runner_up_ptr + b, left, programs, busy, PROGRAMS)


def token_overlap(query, stored, rarity, extra_weight, valid, query_group, stored_group):
    (batch, query_length), (rows, length) = query.shape, stored.shape
    device = query.device
    index = torch.empty(batch, dtype=torch.int32, device=device)
    score, runner_up = (torch.empty(batch, dtype=torch.float32, device=device) for _ in range(2))
    if batch == 0:
        return index, score, runner_up
    query, stored, rarity = query.contiguous(), stored.contiguous(), rarity.contiguous()
    if query_group is not None:
        query_group, stored_group = query_group.contiguous(), stored_group.contiguous()
    places = triton.cdiv(rarity.shape[0], 32)
    bitmap = torch.empty(batch, places, dtype=torch.int32, device=device)
    mass, ticket = torch.empty_like(index), torch.empty_like(index)
    _index_kernel[(batch,)](
        query, rarity, bitmap, mass, ticket, query_length, places, **tuning.config("token_overlap", "index", device)
    )
    config = tuning.config("token_overlap", "match", device)
    fill = max(1, 8 * tuning.multiprocessors(device) // batch)
    programs = max(1, min(MAXIMUM_PROGRAMS, fill, triton.cdiv(rows, config["BLOCK_N"])))
    partial = torch.empty(batch, 2, programs, dtype=torch.int64, device=device)
    _match_kernel[(programs, batch)](
        stored, rarity, bitmap, mass, valid, query_group, stored_group, partial, ticket, index, score, runner_up,
        extra_weight, rows, length, places, PROGRAMS=MAXIMUM_PROGRAMS, **config,
    )  # fmt: skip
    return index, score, runner_up

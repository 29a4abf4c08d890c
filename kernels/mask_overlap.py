"""mask_overlap in Triton: few queries count bits, many multiply unpacked bits on the tensor cores.

Counting costs B N W words at 16 a clock and multiprocessor, which passes the time to read the stored masks at about
4 queries; unpacking costs the same for every query of a block, and pays from FEW_QUERIES on.
"""

import torch
import triton
import triton.language as tl

from . import tuning
from .triton_helpers import popcount, ranked, ranked_row, ranked_score, visible_rows

FEW_QUERIES = 16
# So many programs share the rows at most: 8 on each of 132 multiprocessors, and few enough to be reduced by one.
MAXIMUM_PROGRAMS = 1024


@triton.jit
def _unpack(words, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """[rows, words] int32 -> [rows, 32 words] int8 of 0 and 1."""
    bits = (words[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1
    return tl.reshape(bits.to(tl.int8), (ROWS, WORDS * 32))


@triton.jit
def _shared_bits(
    query_ptr, stored_ptr, queries, real, row, inside, words,
    BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Bits that a tile of stored [rows, words] and a block of query [batch, words] share: [BN, BQ] int32."""
    if BLOCK_Q == 1:
        shared = tl.zeros([BLOCK_N, BLOCK_W], tl.int32)  # reduced once, after the loop
    else:
        shared = tl.zeros([BLOCK_N, BLOCK_Q], tl.int32)
    for start in range(0, words, BLOCK_W):
        word = start + tl.arange(0, BLOCK_W)
        kept = (word < words)[None, :]
        mask = tl.load(
            stored_ptr + row.to(tl.int64)[:, None] * words + word[None, :], mask=inside[:, None] & kept, other=0
        )  # [BN, BW]
        probe = tl.load(
            query_ptr + queries.to(tl.int64)[:, None] * words + word[None, :], mask=real[:, None] & kept, other=0
        )  # [BQ, BW]
        if BLOCK_Q == 1:
            shared += popcount(mask & probe)
        else:
            shared = tl.dot(
                _unpack(mask, BLOCK_N, BLOCK_W),
                tl.trans(_unpack(probe, BLOCK_Q, BLOCK_W)),
                shared,
                out_dtype=tl.int32,
            )
    if BLOCK_Q == 1:
        shared = tl.sum(shared, 1)[:, None]
    return shared


@triton.jit
def _reduce_programs(
    index_ptr, overlap_ptr, route_ptr, minimum_ptr, left_ptr, queries, real, busy, CHUNK: tl.constexpr
):  # fmt: skip
    """What the last program of a block of queries does: reduce rows of left_ptr [programs], of those that were busy."""
    best = tl.zeros([queries.shape[0]], tl.int64)
    for start in range(0, busy, CHUNK):
        program = start + tl.arange(0, CHUNK)
        keys = tl.load(left_ptr[:, None] + program[None, :], mask=real[:, None] & (program < busy)[None, :], other=0)
        best = tl.maximum(best, tl.max(keys, 1))
    nearest, count = ranked_row(best), ranked_score(best)
    tl.store(index_ptr + queries, nearest, mask=real)
    tl.store(overlap_ptr + queries, count, mask=real)
    if route_ptr is not None:
        tl.store(route_ptr + queries, tl.where(count >= tl.load(minimum_ptr), nearest, -1), mask=real)


@triton.jit
def _match_kernel(
    query_ptr,  # [batch, words] int32
    stored_ptr,  # [rows, words] int32
    valid_ptr,  # [1] int32, or None
    query_group_ptr,  # [batch] int32, or None
    stored_group_ptr,  # [rows] int32, or None
    minimum_ptr,  # [1] int32, or None
    partial_ptr,  # [batch, programs] int64, scratch
    ticket_ptr,  # [batch] int32, zeros: programs that have finished, by block
    index_ptr,  # [batch] int32, written
    overlap_ptr,  # [batch] int32, written
    route_ptr,  # [batch] int32, written, or None
    batch, rows, words,
    BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Best row of a block of queries: program p takes the tiles p, p + programs, ... of the rows in use.

    The last program of a block to finish, as ticket_ptr tells, reduces what each left in partial_ptr. The keys carry
    the row, so that the result does not depend on the order in which programs finish.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    visible = visible_rows(valid_ptr, rows)
    tiles = tl.cdiv(visible, BLOCK_N)
    busy = tl.maximum(tl.minimum(programs, tiles), 1)
    if program >= busy:  # rows that are not in use cost nothing
        return
    queries = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    real = queries < batch
    if query_group_ptr is not None:
        own = tl.load(query_group_ptr + queries, mask=real, other=0)

    best = tl.zeros([BLOCK_Q], tl.int64)
    for tile in range(program, tiles, programs):
        row = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = row < visible
        count = _shared_bits(query_ptr, stored_ptr, queries, real, row, inside, words, BLOCK_Q, BLOCK_N, BLOCK_W)
        seen = inside[:, None] & real[None, :]
        if query_group_ptr is not None:
            seen &= tl.load(stored_group_ptr + row, mask=inside, other=0)[:, None] == own[None, :]
        best = tl.maximum(best, tl.max(ranked(count, row[:, None], seen), 0))
    left = partial_ptr + queries.to(tl.int64) * programs
    tl.store(left + program, best, mask=real)
    tl.debug_barrier()
    if tl.atomic_add(ticket_ptr + tl.program_id(1), 1) == busy - 1:
        _reduce_programs(index_ptr, overlap_ptr, route_ptr, minimum_ptr, left, queries, real, busy, CHUNK)


def match(query, stored, valid, query_group, stored_group, minimum, ticket):
    """(index, overlap, route) of contiguous queries, route None without a `minimum`; `ticket` holds B zeros."""
    batch, words = query.shape
    rows = stored.shape[0]
    index, overlap = query.new_empty(batch), query.new_empty(batch)
    route = None if minimum is None else query.new_empty(batch)
    if batch == 0:
        return index, overlap, route
    stored = stored.contiguous()
    if query_group is not None:
        query_group, stored_group = query_group.contiguous(), stored_group.contiguous()
    config = tuning.config("mask_overlap", "few" if batch <= FEW_QUERIES else "many", query.device)
    blocks = triton.cdiv(batch, config["BLOCK_Q"])
    fill = max(1, 8 * tuning.multiprocessors(query.device) // blocks)
    programs = max(1, min(MAXIMUM_PROGRAMS, fill, triton.cdiv(rows, config["BLOCK_N"])))
    partial = torch.empty(batch, programs, dtype=torch.int64, device=query.device)
    _match_kernel[(programs, blocks)](
        query, stored, valid, query_group, stored_group, minimum, partial, ticket, index, overlap, route,
        batch, rows, words, CHUNK=1024 // config["BLOCK_Q"], **config,
    )  # fmt: skip
    return index, overlap, route


def mask_overlap(query, stored, valid, query_group, stored_group):
    ticket = query.new_zeros(query.shape[0])
    return match(query.contiguous(), stored, valid, query_group, stored_group, None, ticket)[:2]

"""nearest_key in Triton: each program takes tiles of stored keys in turns, and the last one reduces what all found."""

import torch
import triton
import triton.language as tl

from . import tuning
from .triton_helpers import ranked, ranked_row, ranked_score, visible_rows

MAXIMUM_PROGRAMS = 512  # share the rows of one query, so that one program can reduce what they leave
INFINITE = tl.constexpr(0x7F800000)  # the bits of infinity in float32


@triton.jit
def _nearest_kernel(
    query_ptr,  # [batch, width]
    stored_ptr,  # [rows, width]
    radius_ptr,  # [rows] float32, or None
    valid_ptr,  # [1] int32, or None
    query_group_ptr,  # [batch] int32, or None
    stored_group_ptr,  # [rows] int32, or None
    partial_ptr,  # [batch, programs] int64, scratch
    ticket_ptr,  # [batch] int32, zeros: programs that have finished
    index_ptr,  # [batch] int32, written
    distance_ptr,  # [batch] float32, written
    route_ptr,  # [batch] int32, written
    rows, width,
    COSINE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Nearest row of query b; the last program to finish reduces what each left in partial_ptr."""
    program, programs, b = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    visible = visible_rows(valid_ptr, rows)
    tiles = tl.cdiv(visible, BLOCK_N)
    busy = tl.maximum(tl.minimum(programs, tiles), 1)
    if program >= busy:
        return
    asked = query_ptr + b.to(tl.int64) * width
    best = tl.full((), 0, tl.int64)
    for tile in range(program, tiles, programs):
        row = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        seen = row < visible
        keys = stored_ptr + row.to(tl.int64)[:, None] * width
        total = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        own = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        length = tl.zeros([BLOCK_D], tl.float32)
        for start in range(0, width, BLOCK_D):
            at = start + tl.arange(0, BLOCK_D)
            inside = at < width
            q = tl.load(asked + at, mask=inside, other=0.0).to(tl.float32)
            k = tl.load(keys + at[None, :], mask=seen[:, None] & inside[None, :], other=0.0).to(tl.float32)
            if COSINE:
                total += q[None, :] * k
                own += k * k
                length += q * q
            else:
                total += (q[None, :] - k) * (q[None, :] - k)
        distance = tl.sum(total, 1)
        if COSINE:
            norms = tl.sqrt_rn(tl.sum(own, 1)) * tl.sqrt_rn(tl.sum(length, 0))
            distance = tl.maximum(1.0 - tl.where(norms > 0, distance / norms, 0.0), 0.0)
        if query_group_ptr is not None:
            seen &= tl.load(stored_group_ptr + row, mask=seen, other=0) == tl.load(query_group_ptr + b)
        # Distances are not negative, so their bits order as they do; what is no finite number is not seen.
        bits = distance.to(tl.int32, bitcast=True)
        seen &= (bits >= 0) & (bits < INFINITE)
        best = tl.maximum(best, tl.max(ranked(tl.where(seen, INFINITE - bits, 0), row, seen), 0))
    left = partial_ptr + b.to(tl.int64) * programs
    tl.store(left + program, best)
    tl.debug_barrier()
    if tl.atomic_add(ticket_ptr + b, 1) == busy - 1:
        others = tl.arange(0, PROGRAMS)
        key = tl.max(tl.load(left + others, mask=others < busy, other=0), 0)
        index = ranked_row(key)
        bits = tl.where(key > 0, INFINITE - ranked_score(key), INFINITE)
        distance = bits.to(tl.float32, bitcast=True)
        if not COSINE:
            distance = tl.sqrt_rn(distance)
        reached = index >= 0
        if radius_ptr is not None:
            reached &= distance <= tl.load(radius_ptr + tl.maximum(index, 0), mask=reached, other=0.0)
        tl.store(index_ptr + b, index)
        tl.store(distance_ptr + b, distance)
        tl.store(route_ptr + b, tl.where(reached, index, -1))


def nearest_key(query, stored, radius, cosine, valid, query_group, stored_group):
    (batch, width), rows = query.shape, stored.shape[0]
    device = query.device
    index, route = (torch.empty(batch, dtype=torch.int32, device=device) for _ in range(2))
    distance = torch.empty(batch, dtype=torch.float32, device=device)
    if batch == 0:
        return index, distance, route
    query, stored = query.contiguous(), stored.contiguous()
    radius, query_group, stored_group = (
        None if part is None else part.contiguous() for part in (radius, query_group, stored_group)
    )
    config = tuning.config("nearest_key", "nearest", device)
    fill = max(1, 8 * tuning.multiprocessors(device) // batch)
    programs = max(1, min(MAXIMUM_PROGRAMS, fill, triton.cdiv(rows, config["BLOCK_N"])))
    partial = torch.empty(batch, programs, dtype=torch.int64, device=device)
    ticket = torch.zeros(batch, dtype=torch.int32, device=device)
    _nearest_kernel[(programs, batch)](
        query, stored, radius, valid, query_group, stored_group, partial, ticket, index, distance, route,
        rows, width, COSINE=cosine, PROGRAMS=MAXIMUM_PROGRAMS, **config,
    )  # fmt: skip
    return index, distance, route

"""The cases in which ops are timed: inputs, bytes that must move, and the same result by torch alone.

A case is an op at one shape. Its `floor` is the bytes that any implementation must read and write, each once; divided
by the memory's bandwidth that is the least time it can take, unless `operations` (bfloat16, of the tensor cores) take
longer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch_forms

import corrigenda.kernels.ops  # noqa: F401 (registers the ops)

# LLaMA-3-8B and Mistral-7B: width of the edited down-projection's input, of its output, and MEMOIR's k.
WIDTH, OUTPUTS, TOP_K = 14336, 4096, 4096


@dataclass(frozen=True)
class Case:
    """One op at one shape: `build(device)` makes its arguments, `forms` are what torch alone makes of them."""

    op: str
    name: str
    build: Callable
    floor: Callable
    operations: float = 0.0
    forms: dict[str, Callable] = field(default_factory=dict)
    small: bool = True  # fits a small machine's memory and patience
    writes_first: bool = False  # the first argument is written: compare it too

    def __str__(self):
        return f"{self.op}[{self.name}]"

    @property
    def function(self):
        """The registered op, without the public function's look for gradients."""
        return getattr(torch.ops.corrigenda, self.op).default


def nbytes(*tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def random(*shape, device, dtype=torch.float32, seed=0):
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=device).to(dtype)


def random_masks(rows, width, k, device, seed=0):
    """int32 masks of k bits each, made in blocks: a million rows of noise would take 57 GB."""
    blocks = []
    generator = torch.Generator(device).manual_seed(seed)
    for start in range(0, rows, 8192):
        noise = torch.rand(min(8192, rows - start), width, generator=generator, device=device)
        bits = torch.zeros_like(noise, dtype=torch.bool)
        bits.scatter_(1, noise.topk(k, dim=1, sorted=False).indices, True)
        blocks.append(pack(bits))
    return torch.cat(blocks)


def pack(bits):
    """`reference.pack_mask`, a tenth of its memory: 32 additions of a column each."""
    words = torch.zeros(len(bits), bits.shape[1] // 32, dtype=torch.int32, device=bits.device)
    for place in range(32):
        words |= bits[:, place::32].int() << place
    return words


def topk_mask(rows, dtype, tokens_each=1, small=True):
    def build(device):
        x = random(rows * tokens_each, WIDTH, device=device, dtype=dtype)
        offsets = torch.arange(0, len(x) + 1, tokens_each, dtype=torch.int32, device=device)
        background = random(WIDTH, device=device, seed=1) / 4
        generator = torch.Generator(device).manual_seed(2)
        permutation = torch.randperm(WIDTH, generator=generator, device=device)
        return x, offsets, TOP_K, None, background, permutation

    def floor(x, offsets, k, weight, background, permutation):
        return nbytes(x, background, permutation) + rows * WIDTH // 8

    name = f"{rows} rows, {_name(dtype)}" if tokens_each == 1 else f"{rows} prompts of {tokens_each}, {_name(dtype)}"
    forms = torch_forms.TOPK_MASK if tokens_each == 1 else {}
    return Case("topk_mask", name, build, floor, forms=forms, small=small)


def mask_overlap(queries, stored, small=True):
    def build(device):
        masks = random_masks(stored, WIDTH, TOP_K, device)
        near = masks[torch.arange(queries, device=device) * 7 % stored]
        return near & random_masks(queries, WIDTH, WIDTH * 3 // 4, device, seed=1), masks, None, None, None

    def floor(query, masks, *visible):
        return nbytes(query, masks) + 8 * queries

    return Case(
        "mask_overlap",
        f"{queries} of {stored:,}",
        build,
        floor,
        operations=1.0 * queries * stored * WIDTH,  # as int8, which runs at twice bfloat16's rate
        forms=torch_forms.MASK_OVERLAP,
        small=small,
    )


def mask_route(queries, stored, small=True):
    fingerprint, match = topk_mask(queries, torch.bfloat16), mask_overlap(queries, stored)

    def build(device):
        _, masks, *visible = match.build(device)
        minimum = torch.tensor([TOP_K // 2], dtype=torch.int32, device=device)
        return *fingerprint.build(device), masks, minimum, *visible

    def floor(x, offsets, k, weight, background, permutation, masks, *rest):
        return nbytes(x, background, permutation, masks) + 12 * queries

    return Case("mask_route", f"{queries} of {stored:,}", build, floor, small=small)


def nearest_key(queries, stored, dtype=torch.float32, cosine=False, small=True):
    def build(device):
        keys = random(stored, WIDTH, device=device, dtype=dtype)
        near = keys[torch.arange(queries, device=device) * 7 % stored] + 0.1
        return near.to(dtype), keys, torch.ones(stored, dtype=torch.float32, device=device), cosine, None, None, None

    def floor(query, keys, radius, *rest):
        return nbytes(query, keys) + 12 * queries

    name = f"{queries} of {stored:,}, {_name(dtype)}{', cosine' if cosine else ''}"
    forms = torch_forms.NEAREST_COSINE if cosine else torch_forms.NEAREST_KEY
    return Case("nearest_key", name, build, floor, forms=forms, small=small)


def token_overlap(queries, stored, tokens=16, small=True):
    vocabulary = 128_256

    def build(device):
        generator = torch.Generator(device).manual_seed(0)
        ids = torch.randint(vocabulary, (stored, tokens), generator=generator, device=device, dtype=torch.int32)
        rarity = torch.randint(1, 1000, (vocabulary,), generator=generator, device=device, dtype=torch.int32)
        return ids[torch.arange(queries, device=device) * 7 % stored], ids, rarity, 0.25, None, None, None

    def floor(query, ids, rarity, *rest):
        return nbytes(query, ids) + 4 * ids.numel() + 12 * queries

    return Case("token_overlap", f"{queries} of {stored:,}", build, floor, small=small)


def masked_linear(tokens, masks, dtype=torch.bfloat16, small=True):
    def build(device):
        x = random(tokens, WIDTH, device=device, dtype=dtype)
        memory = random(WIDTH, OUTPUTS, device=device, dtype=dtype, seed=1) / 64
        y = random(tokens, OUTPUTS, device=device, dtype=dtype, seed=2)
        route = (torch.arange(tokens, device=device) * masks // tokens).int()
        return y, x, memory, random_masks(masks, WIDTH, TOP_K, device), route

    def floor(y, x, memory, stored, route):
        size = memory.element_size()
        read = WIDTH * (1 - (1 - TOP_K / WIDTH) ** masks)  # rows of memory under at least one mask
        return size * (read * OUTPUTS + tokens * (TOP_K + 2 * OUTPUTS)) + nbytes(stored)

    return Case(
        "masked_linear_",
        f"{tokens} tokens, {masks} masks, {_name(dtype)}",
        build,
        floor,
        operations=2.0 * tokens * TOP_K * OUTPUTS,
        forms=torch_forms.MASKED_LINEAR if masks == 1 else torch_forms.MASKED_LINEAR_MANY,
        small=small,
        writes_first=True,
    )


def masked_linear_backward(tokens, masks, dtype=torch.bfloat16, small=True):
    """Both gradients; that of memory is written whole, zeros included."""
    forward = masked_linear(tokens, masks, dtype)

    def build(device):
        return *forward.build(device), (True, True)

    def floor(grad, x, memory, stored, route, needed):
        return forward.floor(grad, x, memory, stored, route) + nbytes(x, memory) - nbytes(grad)

    return Case(
        "masked_linear_backward",
        forward.name,
        build,
        floor,
        operations=2 * forward.operations,
        forms=torch_forms.MASKED_LINEAR_BACKWARD,
        small=small,
    )


def associative_read(tokens, rows=8, width=WIDTH, eight_bits=False, small=True):
    """Every token its own edit, all past the first position."""
    dtype = torch.bfloat16

    def build(device):
        per_edit = -(-rows // 8)
        x = random(tokens, width, device=device, dtype=dtype)
        keys = torch.nn.functional.normalize(random(tokens * per_edit, 8, width, device=device, seed=1), dim=-1)
        values = random(tokens * per_edit, 8, OUTPUTS, device=device, dtype=dtype, seed=2)
        y = random(tokens, OUTPUTS, device=device, dtype=dtype, seed=3)
        generator = torch.Generator(device).manual_seed(4)
        pages = torch.randperm(tokens * per_edit, generator=generator, device=device).int().view(tokens, per_edit)
        scales = None
        if eight_bits:
            scales = values.float().abs().amax(-1) / 127
            values = (values.float() / scales[..., None]).round().to(torch.int8)
        return (
            y,
            x,
            torch.zeros(tokens, dtype=torch.bool, device=device),
            keys.to(dtype),
            values,
            pages,
            torch.full((tokens,), rows, dtype=torch.int32, device=device),
            torch.arange(tokens, dtype=torch.int32, device=device),
            random(width, device=device, seed=5) / 4,
            10.0,
            scales,
        )

    def floor(y, x, first, keys, values, *rest):
        used = (rows - 1) / (-(-rows // 8) * 8)  # a later token does not read row 0
        return nbytes(y, y, x) + used * nbytes(keys, values)

    kind = "int8 values, " if eight_bits else ""
    return Case(
        "associative_read_",
        f"{tokens} edits of {rows} rows, {kind}keys {width}",
        build,
        floor,
        forms=torch_forms.ASSOCIATIVE_READ if rows == 8 and not eight_bits else {},
        small=small,
        writes_first=True,
    )


def adapter_linear(tokens, rank=2, blocks=64, small=True):
    """Every token its own edit with an adapter of its own, as in a step of decoding."""
    dtype = torch.bfloat16

    def build(device):
        x, y = random(tokens, WIDTH, device=device, dtype=dtype), random(tokens, OUTPUTS, device=device, dtype=dtype)
        down = random(blocks, rank, WIDTH, device=device, seed=1) / WIDTH**0.5
        up = random(blocks, rank, OUTPUTS, device=device, seed=2)
        block_of = torch.arange(blocks, dtype=torch.int32, device=device)
        return y, x, down, up, block_of, block_of[torch.arange(tokens, device=device) * 7 % blocks].clone()

    def floor(y, x, down, up, block_of, route):
        return nbytes(x, down[:tokens], up[:tokens]) + 2 * nbytes(y)

    return Case(
        "adapter_linear_",
        f"{tokens} sequences, {tokens} adapters of rank {rank}",
        build,
        floor,
        operations=2.0 * tokens * rank * (WIDTH + OUTPUTS),
        forms=torch_forms.ADAPTER_LINEAR,
        small=small,
        writes_first=True,
    )


def ties_merge(shards, entries, dtype, density=0.2, small=True):
    def build(device):
        deltas = torch.stack([random(entries, device=device, dtype=dtype, seed=s) for s in range(shards)])
        return deltas, torch.ones(shards, device=device), [density] * shards

    def floor(deltas, *rest):
        return nbytes(deltas, deltas) + nbytes(deltas) // shards  # the threshold needs a pass of its own

    return Case(
        "ties_merge",
        f"{shards} shards of {entries / 1e6:.1f}M, {_name(dtype)}",
        build,
        floor,
        forms=torch_forms.TIES_MERGE,
        small=small,
    )


def masked_sgd(tokens, decay=0.0, small=True):
    """WISE's step: a fifth of the entries are free; bfloat16 features, float32 gradient."""

    def build(device):
        delta = random(WIDTH, OUTPUTS, device=device) / 1000
        x = random(tokens, WIDTH, device=device, dtype=torch.bfloat16, seed=1)
        gradient = random(tokens, OUTPUTS, device=device, seed=2)
        base = random(WIDTH, OUTPUTS, device=device, dtype=torch.bfloat16, seed=3) / 64 if decay else None
        return delta, x, gradient, random_masks(WIDTH, OUTPUTS, OUTPUTS // 5, device), base, 1e-4, decay, False, 1.0

    def floor(delta, x, gradient, masks, base, *rest):
        return nbytes(delta, delta, x, gradient, masks, base)

    return Case(
        "masked_sgd_",
        f"{tokens} tokens{', decay' if decay else ''}",
        build,
        floor,
        operations=2.0 * tokens * WIDTH * OUTPUTS,
        forms={} if decay else torch_forms.MASKED_SGD,
        small=small,
        writes_first=True,
    )


def delta_linear(sequences, length, dtype=torch.bfloat16, small=True):
    """`dtype` is delta's; the model's own tensors are bfloat16."""

    def build(device):
        tokens = sequences * length
        x = random(tokens, WIDTH, device=device, dtype=torch.bfloat16)
        base = random(tokens, OUTPUTS, device=device, dtype=torch.bfloat16, seed=1)
        delta = (random(WIDTH, OUTPUTS, device=device, seed=2) / 1000).to(dtype)
        offsets = torch.arange(0, tokens + 1, length, dtype=torch.int32, device=device)
        return x, base, delta, offsets, None, True, 100

    def floor(x, base, delta, offsets, *rest):
        return nbytes(x, base, delta, offsets) + 4 * base.numel() + 4 * len(base) + 4 * sequences

    return Case(
        "delta_linear",
        f"{sequences} x {length} tokens, {_name(dtype)}",
        build,
        floor,
        operations=2.0 * sequences * length * WIDTH * OUTPUTS,
        forms=torch_forms.DELTA_LINEAR,
        small=small,
    )


def label_losses(labels, vocabulary=49_152, width=576):
    """SmolLM2's head in float32: of half precision the reference rounds logits, and nothing agrees with it to 1e-4."""

    def build(device):
        weight = random(vocabulary, width, device=device) / width**0.5
        generator = torch.Generator(device).manual_seed(1)
        wanted = torch.randint(vocabulary, (labels,), generator=generator, device=device)
        return 3 * random(labels, width, device=device, seed=2), weight, wanted

    def floor(hidden, weight, wanted):
        return nbytes(hidden, hidden, weight, wanted) + 4 * labels

    return Case(
        "label_losses",
        f"{labels} labels, {vocabulary:,} x {width}",
        build,
        floor,
        operations=4.0 * labels * vocabulary * width,
        forms=torch_forms.LABEL_LOSSES,
    )


def _name(dtype):
    return str(dtype).removeprefix("torch.")


FULL = WIDTH * OUTPUTS  # entries of one 8B down-projection, 58.7M

CASES = [
    *(topk_mask(rows, torch.bfloat16) for rows in (1, 32, 256)),
    topk_mask(32, torch.float32),
    topk_mask(8, torch.bfloat16, tokens_each=64),
    *(mask_overlap(queries, 10_000) for queries in (1, 32)),
    *(mask_overlap(queries, stored, small=False) for queries in (1, 4, 32, 256) for stored in (1000, 100_000, 10**6)),
    mask_overlap(256, 10_000, small=False),
    *(mask_route(queries, 10_000) for queries in (1, 32)),
    *(token_overlap(queries, stored) for queries in (1, 32) for stored in (1000, 100_000)),
    *(nearest_key(queries, 1000) for queries in (1, 32)),
    nearest_key(1, 1000, torch.bfloat16),
    nearest_key(1, 1000, cosine=True),
    nearest_key(1, 10_000, small=False),
    *(masked_linear(tokens, 1) for tokens in (1, 32)),
    *(masked_linear(tokens, tokens) for tokens in (8, 32)),
    masked_linear_backward(32, 32),
    *(masked_linear(tokens, 1, small=False) for tokens in (64, 256)),
    *(masked_linear(tokens, tokens, small=False) for tokens in (2, 4, 16, 64, 128, 256)),
    *(associative_read(tokens) for tokens in (1, 32)),
    associative_read(64, width=256),
    associative_read(64, width=256, eight_bits=True),
    associative_read(8, rows=200),
    *(associative_read(tokens, small=False) for tokens in (64, 256)),
    *(adapter_linear(tokens) for tokens in (1, 32)),
    adapter_linear(32, rank=16),
    ties_merge(4, 4_000_000, torch.float32),
    ties_merge(4, 4_000_000, torch.bfloat16),
    *(ties_merge(shards, FULL, torch.bfloat16, small=False) for shards in (2, 4, 8)),
    ties_merge(4, FULL, torch.float32, small=False),
    *(masked_sgd(tokens) for tokens in (16, 64)),
    masked_sgd(64, decay=1e-4),
    masked_sgd(400, small=False),
    *(delta_linear(1, 1, dtype) for dtype in (torch.bfloat16, torch.float32)),
    delta_linear(8, 8),
    *(delta_linear(*shape, torch.float32, small=False) for shape in ((32, 1), (1, 64), (8, 50))),
    *(delta_linear(*shape, small=False) for shape in ((32, 1), (8, 50))),
    *(label_losses(labels) for labels in (1, 16, 64)),
]

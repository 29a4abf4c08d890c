"""Arguments of the ops at the shapes of the models: what the tuner times and the compile gate has launched.

Each maker takes a device; on "meta" nothing is allocated, and the launchers still choose their kernels by shape.
"""

import torch

WIDTH, OUTPUTS, K = 14336, 4096, 4096  # LLaMA-3-8B's and Mistral-7B's down-projection, MEMOIR's k
HALF = torch.bfloat16


def _masks(rows, width, device):
    return torch.randint(-(2**31), 2**31 - 1, (rows, (width + 31) // 32), dtype=torch.int32, device=device)


def _counter(n, device):
    return torch.full((1,), n, dtype=torch.int32, device=device)


def _offsets(sequences, length, device):
    return torch.arange(0, sequences * length + 1, length, dtype=torch.int32, device=device)


def topk_mask(sequences=1, length=1, width=WIDTH, dtype=HALF, options=True):
    def make(device):
        x = torch.randn(sequences * length, width, dtype=dtype, device=device)
        weight = torch.rand(len(x), dtype=torch.float32, device=device) if options else None
        background = torch.randn(width, dtype=torch.float32, device=device) if options else None
        permutation = torch.arange(width - 1, -1, -1, dtype=torch.int64, device=device) if options else None
        k = max(1, K * width // WIDTH)
        return x, _offsets(sequences, length, device), k, weight, background, permutation

    return make


def mask_overlap(queries=1, rows=10000, width=WIDTH, groups=False):
    def make(device):
        own, stored = (torch.zeros(n, dtype=torch.int32, device=device) if groups else None for n in (queries, rows))
        return _masks(queries, width, device), _masks(rows, width, device), _counter(rows, device), own, stored

    return make


def mask_route(length=1, rows=10000):
    def make(device):
        stored, minimum, valid = _masks(rows, WIDTH, device), _counter(2048, device), _counter(rows, device)
        return *topk_mask(1, length)(device), stored, minimum, valid, None, None

    return make


def token_overlap(queries=1, rows=10000, groups=False):
    def make(device):
        query, stored = (
            torch.randint(0, 128000, shape, dtype=torch.int32, device=device) for shape in ((queries, 64), (rows, 32))
        )
        rarity = torch.randint(0, 1000, (128256,), dtype=torch.int32, device=device)
        own, others = (torch.zeros(n, dtype=torch.int32, device=device) if groups else None for n in (queries, rows))
        return query, stored, rarity, 0.1, _counter(rows, device), own, others

    return make


def nearest_key(queries=1, rows=10000, dtype=torch.float32, cosine=False, groups=False, radius=True):
    def make(device):
        stored = torch.randn(rows, WIDTH, dtype=dtype, device=device)
        reach = torch.ones(rows, dtype=torch.float32, device=device) if radius else None
        group = [torch.zeros(n, dtype=torch.int32, device=device) for n in (queries, rows)] if groups else [None, None]
        return stored[:queries].clone(), stored, reach, cosine, None, *group

    return make


def masked_linear(tokens, dtypes=(HALF, HALF, HALF), masks=1, needed=None):
    """For masked_linear, or with `needed` for its backward op."""

    def make(device):
        shapes = ((tokens, OUTPUTS), (tokens, WIDTH), (WIDTH, OUTPUTS))
        floats = [torch.randn(shape, dtype=dtype, device=device) for shape, dtype in zip(shapes, dtypes)]
        route = torch.arange(tokens, dtype=torch.int32, device=device) % masks
        return *floats, _masks(masks, WIDTH, device), route, *([] if needed is None else [needed])

    return make


def associative_read(tokens=64, page_count=1, width=256, dtypes=(HALF, HALF, HALF), needed=None):
    """For associative_read, or with `needed` for its backward op; int8 values bring their scales."""

    def make(device):
        edits = tokens
        y = torch.randn(tokens, OUTPUTS, dtype=dtypes[0], device=device)
        x = torch.randn(tokens, width, dtype=HALF, device=device)
        first = torch.zeros(tokens, dtype=torch.bool, device=device)
        keys = torch.randn(edits * page_count, 8, width, dtype=dtypes[1], device=device)
        values = torch.ones(edits * page_count, 8, OUTPUTS, dtype=dtypes[2], device=device)
        pages = torch.arange(edits * page_count, dtype=torch.int32, device=device).view(edits, page_count)
        rows = torch.full((edits,), 8 * page_count, dtype=torch.int32, device=device)
        route = torch.arange(edits, dtype=torch.int32, device=device)
        background = torch.zeros(width, dtype=torch.float32, device=device)
        scales = torch.ones(keys.shape[:2], dtype=torch.float32, device=device) if dtypes[2] == torch.int8 else None
        return y, x, first, keys, values, pages, rows, route, background, 10.0, scales if needed is None else needed

    return make


def adapter_linear(tokens, dtypes=(HALF, HALF, torch.float32), rank=2, blocks=1000):
    def make(device):
        y = torch.randn(tokens, OUTPUTS, dtype=dtypes[0], device=device)
        x = torch.randn(tokens, WIDTH, dtype=dtypes[1], device=device)
        down, up = (torch.randn(blocks, rank, width, dtype=dtypes[2], device=device) for width in (WIDTH, OUTPUTS))
        block_of = torch.arange(blocks, dtype=torch.int32, device=device)
        return y, x, down, up, block_of, block_of[:tokens].clone()

    return make


def ties_merge(shards=4, entries=WIDTH * OUTPUTS, dtype=HALF):
    def make(device):
        return (
            torch.randn(shards, entries, dtype=dtype, device=device),
            torch.ones(shards, dtype=torch.float32, device=device),
            [0.2] * shards,
        )

    return make


def masked_sgd(tokens=400, dtypes=(HALF, torch.float32), base=HALF, decay=1e-4, decay_masked=False):
    """`dtypes` are those of x and of the gradient."""

    def make(device):
        delta = torch.zeros(WIDTH, OUTPUTS, dtype=torch.float32, device=device)
        x = torch.randn(tokens, WIDTH, dtype=dtypes[0], device=device)
        gradient = torch.randn(tokens, OUTPUTS, dtype=dtypes[1], device=device)
        frozen = None if base is None else torch.zeros(WIDTH, OUTPUTS, dtype=base, device=device)
        return delta, x, gradient, _masks(WIDTH, OUTPUTS, device), frozen, 0.1, decay, decay_masked, 1.0

    return make


def delta_linear(tokens, dtypes=(HALF, HALF), weight=False, activated=True):
    """`dtypes` are those of x and of delta."""

    def make(device):
        x = torch.randn(tokens, WIDTH, dtype=dtypes[0], device=device)
        base = torch.randn(tokens, OUTPUTS, dtype=dtypes[0], device=device)
        delta = torch.randn(WIDTH, OUTPUTS, dtype=dtypes[1], device=device)
        share = torch.rand(tokens, dtype=torch.float32, device=device) if weight else None
        return x, base, delta, _offsets(1, tokens, device), share, activated, 100

    return make


def timed():
    """(kernel, variant, op, maker) of every variant that the tuner times, each where the variant decides the time."""
    return [
        ("topk_mask", "pool", "topk_mask", topk_mask(8, 512)),
        ("topk_mask", "select_16384", "topk_mask", topk_mask()),
        ("mask_overlap", "few", "mask_overlap", mask_overlap()),
        ("mask_overlap", "many", "mask_overlap", mask_overlap(256)),
        ("token_overlap", "match", "token_overlap", token_overlap()),
        ("nearest_key", "nearest", "nearest_key", nearest_key()),
        ("masked_linear", "one", "masked_linear_", masked_linear(1)),
        ("masked_linear", "few", "masked_linear_", masked_linear(16, masks=16)),
        ("masked_linear", "many", "masked_linear_", masked_linear(256)),
        ("masked_linear", "input_gradient", "masked_linear_backward", masked_linear(64, needed=[True, False])),
        ("masked_linear", "memory_gradient", "masked_linear_backward", masked_linear(64, needed=[False, True])),
        ("associative_read", "fused", "associative_read_", associative_read()),
        ("associative_read", "score", "associative_read_", associative_read(page_count=64, width=4096)),
        ("associative_read", "read", "associative_read_", associative_read(page_count=64, width=4096)),
        ("adapter_linear", "read", "adapter_linear_", adapter_linear(1)),
        ("ties_merge", "count", "ties_merge", ties_merge()),
        ("ties_merge", "merge", "ties_merge", ties_merge()),
        ("masked_sgd", "step", "masked_sgd_", masked_sgd(dtypes=(HALF, HALF))),
        ("masked_sgd", "step_float32", "masked_sgd_", masked_sgd()),
        ("delta_linear", "few", "delta_linear", delta_linear(1)),
        ("delta_linear", "many", "delta_linear", delta_linear(256)),
        ("delta_linear", "few_float32", "delta_linear", delta_linear(1, (HALF, torch.float32))),
        ("delta_linear", "many_float32", "delta_linear", delta_linear(256, (HALF, torch.float32))),
        ("delta_linear", "distance", "delta_linear", delta_linear(256)),
    ]


def compiled():
    """(op, maker) that between them launch every kernel in every variant, and every element type that matters."""
    single, half, small = torch.float32, torch.float16, torch.int8
    both = [True, True]
    return [
        *(("topk_mask", topk_mask(width=2**n, options=False)) for n in range(10, 15)),
        ("topk_mask", topk_mask(2, 128)),
        ("topk_mask", topk_mask(2, 128, dtype=single, options=False)),
        ("topk_mask", topk_mask(1, 1, 11008, dtype=single)),
        ("mask_overlap", mask_overlap()),
        ("mask_overlap", mask_overlap(groups=True)),
        ("mask_overlap", mask_overlap(256)),
        ("mask_overlap", mask_overlap(256, groups=True)),
        ("mask_route", mask_route()),
        ("mask_route", mask_route(128)),
        ("token_overlap", token_overlap()),
        ("token_overlap", token_overlap(groups=True)),
        *(("nearest_key", nearest_key(dtype=dtype)) for dtype in (single, HALF, half)),
        ("nearest_key", nearest_key(4, cosine=True, groups=True)),
        ("nearest_key", nearest_key(cosine=True, radius=False)),
        *(
            ("masked_linear_", masked_linear(tokens, dtypes))
            for tokens in (1, 16, 256, 8192)
            for dtypes in ((HALF,) * 3, (HALF, HALF, single), (single,) * 3)
        ),
        ("masked_linear_", masked_linear(16, (half,) * 3)),
        *(
            ("masked_linear_backward", masked_linear(64, dtypes, needed=both))
            for dtypes in ((HALF,) * 3, (HALF, HALF, single), (single,) * 3)
        ),
        *(
            ("associative_read_", associative_read(page_count=page_count, dtypes=dtypes))
            for page_count in (1, 64)
            for dtypes in ((HALF,) * 3, (HALF, HALF, single), (HALF, HALF, small), (single,) * 3)
        ),
        *(
            ("associative_read_backward", associative_read(dtypes=dtypes, needed=[True, *both]))
            for dtypes in ((HALF,) * 3, (HALF, single, single))
        ),
        *(
            ("adapter_linear_", adapter_linear(4, dtypes))
            for dtypes in ((HALF,) * 3, (HALF, HALF, single), (half,) * 3, (single,) * 3)
        ),
        *(("ties_merge", ties_merge(dtype=dtype)) for dtype in (HALF, half, single)),
        ("ties_merge", ties_merge(entries=1000)),
        *(
            ("masked_sgd_", masked_sgd(dtypes=dtypes, base=base, decay=decay, decay_masked=decay_masked))
            for dtypes in ((HALF, HALF), (HALF, single), (single, single), (half, half))
            for base, decay, decay_masked in ((None, 0.0, False), (HALF, 1e-4, False), (HALF, 1e-4, True))
        ),
        *(
            ("delta_linear", delta_linear(tokens, dtypes, weight=tokens == 1, activated=tokens > 1))
            for tokens in (1, 256, 8192)
            for dtypes in ((HALF, HALF), (half, half), (HALF, single), (single, single))
        ),
    ]

"""Second moments of a layer's keys over text: what closed forms weigh a change of weights by."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..edits.tokenizer import Tokenizer
from ..errors import CorrigendaError
from .decoder import Decoder
from .frozen import length_groups, padded_ids, pass_tokens
from .identity import same_weights, tokenizer_digest, weight_sample
from .model_folder import cache_folder

_LONGEST = 512
"""Tokens of a text that pass the model together; a longer one is cut there."""

_CACHED_FROM = 1024
"""Width from which what was found is kept on the disk: 5,800 tokens of background take SmolLM2 some ten seconds."""


class Covariance(NamedTuple):
    """Mean of k k^T, fp64 `[D, D]`, over the inputs k of a down-projection, uncentred; and of how many tokens."""

    matrix: Tensor
    tokens: int


@torch.no_grad()
def key_covariances(decoder: Decoder, layers: Sequence[int], rows: Iterable[Sequence[int]]) -> dict[int, Covariance]:
    """Of each of these layers, over token rows that may come in a stream; one pass through the layers up to the last.

    Sums are kept in fp64, `[D, D]` a layer, products are taken in fp32.
    """
    widths = {layer: decoder.widths(layer)[0] for layer in layers}
    sums = {
        layer: torch.zeros(width, width, dtype=torch.float64, device=decoder.device(layer))
        for layer, width in widths.items()
    }
    count = 0
    budget = pass_tokens(decoder.device(0), 1024)
    for part in _batches(rows, budget):
        for group in length_groups(list(map(len, part)), budget):
            ids = padded_ids([part[i] for i in group], decoder.device(0))
            lengths = torch.tensor([len(part[i]) for i in group], dtype=torch.int64, device=ids.device)
            real = torch.arange(ids.shape[1], dtype=torch.int64, device=ids.device) < lengths[:, None]
            for layer, keys in _keys(decoder, layers, ids).items():
                found = keys[real.to(keys.device)].float()
                sums[layer] += found.T @ found
            count += int(lengths.sum())
    if not count:
        raise CorrigendaError("The text has no tokens: a covariance needs some thousands.")
    return {layer: Covariance(total / count, count) for layer, total in sums.items()}


class _Reached(Exception):
    """The last layer that is asked about has been reached."""


def _keys(decoder: Decoder, layers: Sequence[int], ids: Tensor) -> dict[int, Tensor]:
    """What the down-projections of these layers take in, `[rows, length, D]` each."""
    taken: dict[int, Tensor] = {}
    last = max(layers)

    def take(layer: int, keys: Tensor) -> None:
        taken[layer] = keys.view(*ids.shape, -1)
        if layer == last:
            raise _Reached

    handles = [
        decoder.down_proj(layer).register_forward_pre_hook(lambda _module, args, layer=layer: take(layer, args[0]))
        for layer in layers
    ]
    try:
        with contextlib.suppress(_Reached):
            decoder.body(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return taken


def _batches(rows: Iterable[Sequence[int]], tokens: int) -> Iterator[list[Sequence[int]]]:
    """Rows cut at `_LONGEST`, in batches of some `tokens`, so that like lengths stand side by side."""
    batch: list[Sequence[int]] = []
    for row in rows:
        batch += [row[start : start + _LONGEST] for start in range(0, len(row), _LONGEST)]
        if sum(map(len, batch)) >= 8 * tokens:
            yield batch
            batch = []
    if batch:
        yield batch


def save_covariances(
    path: str | Path, found: dict[int, Covariance], decoder: Decoder, tokenizer: Tokenizer, text_digest: str
) -> None:
    """Write them into one safetensors file, with what they are of: model, tokenizer and text. Whole, or not there."""
    tensors = {f"covariance.{layer}": one.matrix.float().cpu().contiguous() for layer, one in found.items()}
    tensors |= {f"weights.{layer}": weight_sample(decoder, layer) for layer in found}
    said = {
        "tokens": str(next(iter(found.values())).tokens),
        "tokenizer": tokenizer_digest(tokenizer),
        "text": text_digest,
    }
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part, said)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise CorrigendaError(f"The covariance cannot be written to {path}: {error.strerror}.") from error


def load_covariance(path: str | Path, layer: int, decoder: Decoder, tokenizer: Tokenizer) -> Covariance:
    """One layer's, from a file that `save_covariances` wrote; raises where it is another model's, or damaged."""
    try:
        with safe_open(path, "pt", device="cpu") as opened:
            said, names = opened.metadata() or {}, set(opened.keys())
            if f"covariance.{layer}" not in names:
                known = ", ".join(sorted((n.partition(".")[2] for n in names if n.startswith("covariance.")), key=int))
                raise CorrigendaError(f"{path} has no covariance of layer {layer}, but of {known or 'none'}.")
            matrix, sample = (opened.get_tensor(f"{kind}.{layer}") for kind in ("covariance", "weights"))
        tokens = int(said.get("tokens", "0"))
    except FileNotFoundError:
        raise CorrigendaError(f"There is no covariance file {path}: `corrigenda covariance` writes one.") from None
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(error, CorrigendaError):
            raise
        raise CorrigendaError(f"{path} cannot be read as a covariance: {error}.") from None
    width = decoder.widths(layer)[0]
    if tuple(matrix.shape) != (width, width) or said.get("tokenizer") != tokenizer_digest(tokenizer):
        raise CorrigendaError(f"The covariance in {path} is another model's: its widths or its tokenizer differ.")
    if not same_weights(sample, weight_sample(decoder, layer)):
        raise CorrigendaError(f"The covariance in {path} is another model's: its weights differ.")
    if not bool(matrix.isfinite().all()):
        raise CorrigendaError(f"{path} is damaged: its covariance of layer {layer} is not finite.")
    return Covariance(matrix.double().to(decoder.device(layer)), tokens)


def background_covariances(
    decoder: Decoder, tokenizer: Tokenizer, layers: Sequence[int], texts: Sequence[str]
) -> dict[int, Covariance]:
    """The same over the project's own background texts: found when first asked for, and kept for wide layers."""
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    found: dict[int, Covariance] = {}
    places = {}
    if decoder.widths(layers[0])[0] >= _CACHED_FROM:
        for layer in layers:
            of_model = weight_sample(decoder, layer).numpy().tobytes() + tokenizer_digest(tokenizer).encode()
            name = hashlib.sha256(of_model + digest.encode()).hexdigest()[:24]
            places[layer] = cache_folder() / f"covariance-{layer}-{name}.safetensors"
            with contextlib.suppress(CorrigendaError):  # not there, or cut short: it is found anew
                found[layer] = load_covariance(places[layer], layer, decoder, tokenizer)
    missing = [layer for layer in layers if layer not in found]
    if missing:
        rows = [row for text in texts if (row := tokenizer(text)["input_ids"])]
        for layer, one in key_covariances(decoder, missing, rows).items():
            # As a file would give it back: what is written must not depend on who found it first.
            found[layer] = Covariance(one.matrix.float().double(), one.tokens)
            if layer in places:
                with contextlib.suppress(CorrigendaError):  # a full disk: the next one finds it anew
                    save_covariances(places[layer], {layer: found[layer]}, decoder, tokenizer, digest)
    return found


def covariances_of_text(
    decoder: Decoder, tokenizer: Tokenizer, layers: Sequence[int], path: Path, limit: int | None = None
) -> tuple[dict[int, Covariance], str]:
    """Of a text, a line at a time (`-`: standard input), up to `limit` tokens; and the SHA-256 of what was read."""
    digest = hashlib.sha256()

    def rows(lines: Iterable[bytes]) -> Iterator[list[int]]:
        left = limit
        for number, line in enumerate(lines, start=1):
            try:
                text = line.decode("utf-8").strip()
            except UnicodeDecodeError:
                raise CorrigendaError(f"{path}, line {number}: the text is not UTF-8.") from None
            if not text:
                continue
            digest.update(line)
            row = tokenizer(text)["input_ids"][:left]
            yield row
            if left is not None:
                left -= len(row)
                if left <= 0:
                    return

    try:
        with contextlib.nullcontext(sys.stdin.buffer) if str(path) == "-" else path.open("rb") as lines:
            found = key_covariances(decoder, layers, rows(lines))
    except OSError as error:
        raise CorrigendaError(f"{path} cannot be read: {error.strerror}.") from None
    return found, digest.hexdigest()

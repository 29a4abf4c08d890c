"""Saved edits on disk: a folder with a ledger, whole or not there, and checked before it is used."""

from __future__ import annotations

import contextlib
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..backbone.identity import (
    adapter_sample,
    another_adapter,
    another_model,
    same_weights,
    tokenizer_digest,
    weight_sample,
)
from ..edits.edit import Edit
from ..edits.tokenizer import Tokenizer
from ..errors import CorrigendaError, warn_user
from ..methods.config import EditingConfig
from ..store import migrate
from ..store.codec import packed, unpacked
from ..store.files import refuse_non_empty
from ..store.store import EditStore, is_store
from .card import is_hub_id
from .hub import Token, fetched

if TYPE_CHECKING:
    from torch import Tensor

    from ..backbone.decoder import Decoder
    from .edited_model import EditedModel

__all__ = ["Saved", "check_base", "header_of", "read", "refuse_non_empty", "sample_of", "weight_sample_of"]

_SAMPLE = "base.weight_sample"


class Saved(NamedTuple):
    """What a folder holds, read but not yet compared with a model."""

    directory: Path
    store: EditStore
    config: EditingConfig

    @property
    def prompts(self) -> dict[str, Any]:
        return self.store.header["prompts"]

    @property
    def base(self) -> dict[str, Any]:
        return self.store.header["base"]

    @property
    def edits(self) -> list[Edit]:
        """The edits that make up the memory, in order."""
        history = self.store.history
        return [history.edits[seq].edit for seq in history.applied()]

    def close(self) -> None:
        self.store.close()


def read_from(place: str | Path, revision: str | None = None, token: Token = None) -> Saved:
    """Read a folder that edits were saved in; or, where a text names none, a repository of a hub."""
    if isinstance(place, str) and is_hub_id(place):
        with fetched(place, revision, token) as folder, contextlib.closing(read(folder)) as saved:
            return Saved(Path(place), saved.store.copy(None), saved.config)
    if revision is not None:
        raise CorrigendaError(f"{place} is a folder, which has no revisions: leave out `edits_revision`.")
    return read(place)


def read(directory: str | Path, *, write: bool = False) -> Saved:
    """Read a folder that edits were saved in, of this version or an earlier one; with `write`, as its only writer.

    A folder of an earlier version is read into a temporary store and stays as it is.
    """
    path = Path(directory)
    if not is_store(path) and migrate.is_first_format(path):
        if write:
            raise CorrigendaError(f"{path} is of an earlier version: run `corrigenda migrate` before changing it.")
        store = migrate.converted(path)
    else:
        store = EditStore.open(path, write=write)
    try:
        config = EditingConfig.from_dict(store.header["config"])
    except (CorrigendaError, TypeError) as error:
        store.close()
        raise CorrigendaError(f"{store.ledger.name} cannot be read: {str(error).rstrip('.')}.") from error
    return Saved(path, store, config)


def opened_by(config: EditingConfig, router: str | None) -> EditingConfig:
    """The configuration of saved edits, to be found by another router than the one that they were written for.

    Edits for the router by meaning can be found by their tokens alone, where its encoder is missing; no others.
    """
    own = getattr(config, "router", None)
    if router in (None, own):
        return config
    if (own, router) != ("meaning", "tokens"):
        raise CorrigendaError(
            f"These edits were written for {'no router' if own is None else f'the router {own!r}'} and cannot be found "
            f'by "{router}": `corrigenda migrate --router {router}` writes them anew where that is possible.'
        )
    return routed_by(config, "tokens")


def routed_by(config: EditingConfig, router: str) -> EditingConfig:
    """The same configuration with another router, whose threshold is its own."""
    return EditingConfig.from_dict({**config.to_dict(), "router": router, "threshold": "auto"})


def header_of(edited: EditedModel) -> dict[str, Any]:
    """What a store says of the model and the configuration that its edits are for."""
    return {
        "config": edited.config.to_dict(),
        "prompts": edited.prompts.to_dict(),
        "base": {
            "name": edited.name,
            "class": type(edited.decoder.model).__name__,
            "layers": len(edited.decoder),
            "widths": list(edited.decoder.widths(edited.config.layer)),
            "tokenizer": tokenizer_digest(edited.tokenizer),
            "vocabulary": edited.model.get_input_embeddings().num_embeddings,
            "adapter": adapter_sample(edited.decoder.model),
        },
        "versions": {name: version(name) for name in ("corrigenda", "torch", "transformers")},
    }


def sample_of(edited: EditedModel) -> bytes:
    """A sample of the base model's weights, by which it is known again."""
    return packed({_SAMPLE: weight_sample(edited.decoder, edited.config.layer)})


def weight_sample_of(store: EditStore) -> Tensor | None:
    """What a store holds of `sample_of`; None in one whose tensors are another's."""
    entry = store.history.store
    return unpacked(store.ledger, entry.seq, entry.body.get("tensors", {})).get(_SAMPLE)


def check_unchanged(store: EditStore, edited: EditedModel) -> None:
    """Raise where a model has other weights by now than its store's edits were written for.

    Of one that is split over processes, whose weights they would have to gather, this is not asked.
    """
    if edited.decoder.parts is not None:
        return
    recorded = weight_sample_of(store)
    if recorded is not None and not same_weights(recorded, weight_sample(edited.decoder, edited.config.layer)):
        raise CorrigendaError(
            "The model's weights have changed since its edits were written (it was trained, or an adapter merged), so "
            "no edit is written beside them: detach the edits, and write all of them anew into another folder."
        )


def check_base(saved: Saved, decoder: Decoder, tokenizer: Tokenizer) -> None:
    """Raise where saved edits were written for another model or with another tokenizer; warn of another adapter."""
    _check_found(saved, {"layers": len(decoder)})
    if not isinstance(saved.config.layer, int) or not 0 <= saved.config.layer < len(decoder):
        raise CorrigendaError(
            f"The edits in {saved.directory} cannot be used: layer {saved.config.layer} is out of range."
        )
    _check_found(saved, {"widths": list(decoder.widths(saved.config.layer)), "tokenizer": tokenizer_digest(tokenizer)})
    _check_found(saved, {"weights": weight_sample(decoder, saved.config.layer)})
    if sentence := another_adapter(saved.directory, saved.base, adapter_sample(decoder.model)):
        warn_user(sentence)


def _check_found(saved: Saved, found: dict[str, Any]) -> None:
    recorded = {**saved.base, "weights": weight_sample_of(saved.store)} if "weights" in found else saved.base
    if sentence := another_model(saved.directory, recorded, found):
        raise CorrigendaError(sentence)

"""What else one could ask about a subject: relations in many wordings, tasks and mentions, as an encoder sees them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from ...errors import CorrigendaError
from .encoder import Encoder
from .known import as_int8, as_unit
from .subject import STAND_IN, content_words, holds_stand_in, normalised
from .wording import answer_kind, core

DECOYS = "decoys.json"
"""The decoys' texts: relations with their wordings, tasks, mentions, and which relations are alike."""

SHIPPED = "meaning.safetensors"
"""The decoys' vectors for the packaged encoder, and the head and the rule that were fitted with it."""

_OWN, _OWN_PROJECTED = 0.05, 0.1
"""A relation is taken for an edit's own, and no decoy of it, where its cosine is this near the nearest one's: every
edit asks for something."""

_HEAD_WIDTH, _RIDGE = 64, 0.6
"""Of nine settings the best for telling relations apart that the head was not made of (`bench/free_wordings.json`)."""


class Profile:
    """A text as the decoys see it.

    vector, projected  float32 unit vectors `[width]`, `[head width]`
    relations          float32 `[relations]`: cosine to each relation's nearest wording; `projected_relations` likewise
    kin                bool `[relations]`: the nearest of these, and those alike; `projected_kin` likewise
    tasks, mentions    cosine to the nearest of each; `projected_other` to the nearest of both
    """

    __slots__ = (
        *("kin", "mentions", "projected", "projected_kin", "projected_other", "projected_relations", "relations"),
        *("tasks", "vector"),
    )

    def __init__(self, decoys: Decoys, vector: np.ndarray) -> None:
        self.vector = vector
        self.projected = decoys.projected(vector)
        near = decoys.vectors @ vector
        self.relations = np.maximum.reduceat(near[: decoys.asking], decoys.starts)
        self.tasks = float(near[decoys.asking : decoys.tasks_end].max())
        self.mentions = float(near[decoys.tasks_end :].max())
        near = decoys.projected_vectors @ self.projected
        self.projected_relations = np.maximum.reduceat(near[: decoys.asking], decoys.starts)
        self.projected_other = float(near[decoys.asking :].max())
        self.kin = decoys.alike[int(self.relations.argmax())]
        self.projected_kin = decoys.alike[int(self.projected_relations.argmax())]

    def own(self, decoys: Decoys) -> np.ndarray:
        """bool `[relations]`: those that an edit with this text asks for itself."""
        return _own(self.relations, _OWN, decoys)

    def projected_own(self, decoys: Decoys) -> np.ndarray:
        return _own(self.projected_relations, _OWN_PROJECTED, decoys)


def _own(relations: np.ndarray, within: float, decoys: Decoys) -> np.ndarray:
    nearest = int(relations.argmax())
    return (relations >= relations[nearest] - within) | decoys.alike[nearest]


class Decoys:
    """The project's decoys, and a user's own, under an encoder.

    names    of the relations, in order; wordings: theirs, in the form in which they are compared
    kinds    of the answers that each is asked for with, as of `answer_kind`
    alike    bool `[relations, relations]`: whether one question may ask for either: "where is it?" for country or town
    digest   of all texts: what decisions with them can be compared with
    vectors  float32 `[texts, width]`: relations' wordings first (`asking` of them), then tasks, then mentions
    head     float32 `[width, head width]`: linear discriminants of the relations' wordings (Fisher's, with a ridge):
             directions in which wordings of one relation are near each other and those of two are not
    """

    def __init__(self, encoder: Encoder, own: Sequence[str] = ()) -> None:
        relations, tasks, mentions = texts_of(own)
        self.names = list(relations)
        self.wordings = list(relations.values())
        self._words = [frozenset(word for text in texts for word in content_words(text)) for texts in self.wordings]
        self.kinds = [frozenset(map(answer_kind, texts)) for texts in relations.values()]
        self.alike = _alike(self.names)
        wordings = [text for texts in relations.values() for text in texts]
        self.asking = len(wordings)
        self.tasks_end = self.asking + len(tasks)
        counts = [len(texts) for texts in relations.values()]
        self.starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        texts = [*wordings, *tasks, *mentions]
        self.digest = hashlib.sha256(json.dumps([self.names, texts]).encode()).hexdigest()
        shipped = _shipped(encoder.digest)
        self.vectors = _vectors(encoder, texts, shipped)
        if shipped is None:
            labels: np.ndarray = np.repeat(np.arange(len(counts)), counts)
            self.mean, self.head = discriminants(self.vectors[: self.asking], labels, _HEAD_WIDTH)
        else:
            self.mean, self.head = (shipped[name].astype(np.float32) for name in ("head.mean", "head.directions"))
        self.projected_vectors = self.projected(self.vectors)

    def words_of(self, kin: np.ndarray) -> frozenset[str]:
        """The words of relations, bool `[relations]`, that say something."""
        return frozenset().union(*(self._words[place] for place in np.flatnonzero(kin)))

    def projected(self, vectors: np.ndarray) -> np.ndarray:
        """Unit vectors `[..., width]` on the head's directions, as unit vectors."""
        projected = (vectors - self.mean) @ self.head
        return projected / np.maximum(np.linalg.norm(projected, axis=-1, keepdims=True), 1e-12)


def _alike(names: list[str]) -> np.ndarray:
    places = {name: place for place, name in enumerate(names)}
    alike: np.ndarray = np.eye(len(names), dtype=bool)
    for group in _data()["alike"]:
        members = [places[name] for name in group]
        alike[np.ix_(members, members)] = True
    return alike


def discriminants(vectors: np.ndarray, labels: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean `[n]` of vectors, and their `width` leading linear discriminants `[n, width]` by their labels."""
    mean = vectors.mean(0)
    within = np.zeros((vectors.shape[1],) * 2)
    between = np.zeros_like(within)
    for label in range(int(labels.max()) + 1):
        group = vectors[labels == label].astype(np.float64)
        centre = group.mean(0)
        within += (group - centre).T @ (group - centre)
        between += len(group) * np.outer(centre - mean, centre - mean)
    within = (1 - _RIDGE) * within / len(vectors)
    within += _RIDGE * np.eye(len(within)) * np.trace(within) / len(within) / (1 - _RIDGE)
    values, directions = np.linalg.eigh(within)
    whiten = directions / np.sqrt(values)
    values, directions = np.linalg.eigh(whiten.T @ (between / len(vectors)) @ whiten)
    width = min(width, vectors.shape[1])
    return mean.astype(np.float32), (whiten @ directions[:, ::-1][:, :width]).astype(np.float32)


def texts_of(own: Sequence[str] = ()) -> tuple[dict[str, list[str]], list[str], list[str]]:
    """Relations with their wordings, tasks and mentions, in the form in which they are compared.

    own: a user's, each a question with "it" for the subject, and a relation of its own.
    """
    data = _data()
    relations = {
        name: [
            _form(f"what is the {name} of {STAND_IN}?"),
            _form(f"the {name} of {STAND_IN} is"),
            *map(_form, wordings),
        ]
        for name, wordings in data["relations"].items()
    }
    for text in own:
        relations.setdefault(text, [_form(text)])
    return relations, list(map(_form, data["tasks"])), list(map(_form, data["mentions"]))


def read_decoys(path: str | Path) -> list[str]:
    """A user's decoys, one a line, each with the word "it" where the subject stands."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CorrigendaError(f"The decoys in {path} cannot be read: {error}.") from None
    found = [line.strip() for line in lines if line.strip()]
    for number, line in enumerate(found, start=1):
        if not holds_stand_in(line):
            raise CorrigendaError(
                f'{path}: decoy {number} must have the word "{STAND_IN}" where the subject stands: {line!r}.'
            )
    return found


def _form(text: str) -> str:
    return core(normalised(text))


@lru_cache(maxsize=1)
def _data() -> dict:
    return json.loads((files("corrigenda.editing") / "data" / DECOYS).read_text(encoding="utf-8"))


def _vectors(encoder: Encoder, texts: Sequence[str], shipped: dict[str, np.ndarray] | None) -> np.ndarray:
    """The vectors of texts: those that ship with the project, in the order of its own texts, or encoded."""
    known: dict[str, np.ndarray] = {}
    if shipped is not None:
        relations, tasks, mentions = texts_of()
        named = [*(text for wordings in relations.values() for text in wordings), *tasks, *mentions]
        if len(named) == len(shipped["decoys"]):
            known = dict(zip(named, as_unit(shipped["decoys"])))
    new = [text for text in texts if text not in known]
    known.update(zip(new, encoder.encode(new).numpy()))
    return np.stack([known[text] for text in texts]).astype(np.float32)


@lru_cache(maxsize=4)
def _shipped(encoder: str) -> dict[str, np.ndarray] | None:
    """What ships for an encoder, by its digest, if that is the packaged one and the decoys are those in the file."""
    path = files("corrigenda.editing") / "data" / SHIPPED
    if not path.is_file():
        return None
    with safe_open(str(path), framework="numpy") as file:
        said = file.metadata() or {}
        if said.get("encoder") != encoder or said.get("decoys") != decoys_digest():
            return None
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def decoys_digest() -> str:
    """Of the project's own texts."""
    return hashlib.sha256(json.dumps(texts_of()).encode()).hexdigest()


def ship(path: Path, encoder: Encoder, rule: dict[str, np.ndarray]) -> None:
    """Write the file that `_shipped` reads: decoys' vectors, head, and the tensors of a rule."""
    decoys = Decoys(encoder)
    tensors = {
        "decoys": as_int8(decoys.vectors),
        "head.mean": decoys.mean.astype(np.float16),
        "head.directions": decoys.head.astype(np.float16),
        **rule,
    }
    # Written as it lies in memory: a transposed array would come back scrambled.
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(tensors, str(path), {"encoder": encoder.digest, "decoys": decoys_digest()})
    _shipped.cache_clear()

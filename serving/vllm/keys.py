"""Under which keys the parts in vLLM's processes find what they tell each other."""

from __future__ import annotations

from typing import Any

from ...editing.edits.answer_start import AnswerPlan
from .protocols import EngineConfig, SamplingParams

CONFIG = "corrigenda"
"""The key of vLLM's `additional_config` under which the settings are given."""
LAYER = "corrigenda_layer"
"""The key under which the plugin adds what the workers, and the keys of compiled code, must know of the edits."""


def edit_of(sampling_params: SamplingParams | None) -> str | None:
    """The key of the edit that answers a request, as the front end wrote it into its parameters (`admission`)."""
    extra = getattr(sampling_params, "extra_args", None) or {}
    return (extra.get(CONFIG) or {}).get("edit")


def plan_of(sampling_params: Any) -> AnswerPlan | None:
    """How the answer of a request's edit can be said, as the front end wrote it there."""
    extra = getattr(sampling_params, "extra_args", None) or {}
    plan = (extra.get(CONFIG) or {}).get("answer")
    return None if plan is None else AnswerPlan(**plan)


def settings_in(vllm_config: EngineConfig) -> Any:
    """What a configuration gives for Corrigenda; None without."""
    extra = getattr(vllm_config, "additional_config", None)
    return extra.get(CONFIG) if isinstance(extra, dict) else None

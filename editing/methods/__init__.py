"""The editing methods, each a folder that reads as its algorithm; `registry.py` lists them."""

from . import registry as registry

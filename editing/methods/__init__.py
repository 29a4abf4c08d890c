"""The editing methods, each a short file that reads as its algorithm."""

from .associative import Associative
from .frame import Method, Written
from .memoir import Memoir

METHODS: dict[str, type[Method]] = {method.config_class.method: method for method in (Associative, Memoir)}

__all__ = ["METHODS", "Associative", "Memoir", "Method", "Written"]

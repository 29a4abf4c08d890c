"""The editing methods, each a short file that reads as its algorithm."""

from .associative import Associative
from .frame import Method
from .memoir import Memoir
from .record import Record, Solved, Written

METHODS: dict[str, type[Method]] = {method.config_class.method: method for method in (Associative, Memoir)}

__all__ = ["METHODS", "Associative", "Memoir", "Method", "Record", "Solved", "Written"]

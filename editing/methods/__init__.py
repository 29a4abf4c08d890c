"""The editing methods, each a short file that reads as its algorithm."""

from .associative import Associative
from .frame import Method
from .memoir import Memoir
from .record import Record, Solved, Written
from .wise import Wise

METHODS: dict[str, type[Method]] = {
    "associative": Associative,
    "memoir": Memoir,
    "wise-merge": Wise,
    "wise-retrieve": Wise,
}

__all__ = ["METHODS", "Associative", "Memoir", "Method", "Record", "Solved", "Wise", "Written"]

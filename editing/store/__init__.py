"""The edit store: a ledger of every edit, of which the memory tensors are a view."""

from .files import LEDGER_NAME
from .history import History, StoredEdit
from .ledger import Ledger

__all__ = ["LEDGER_NAME", "History", "Ledger", "StoredEdit"]

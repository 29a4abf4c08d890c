"""The edit store: a ledger of every edit, of which the memory tensors are a view."""

from .history import History, StoredEdit
from .ledger import LEDGER_NAME, Ledger

__all__ = ["LEDGER_NAME", "History", "Ledger", "StoredEdit"]

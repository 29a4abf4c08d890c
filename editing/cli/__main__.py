"""`python -m corrigenda.editing.cli`."""

from .app import main

main()

"""MEMIT (arXiv 2210.07229)."""

"""GRACE (arXiv 2211.11031)."""

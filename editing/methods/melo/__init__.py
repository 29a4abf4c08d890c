"""MELO (arXiv 2312.11795)."""

"""UltraEdit (arXiv 2505.14679)."""

"""ROME (arXiv 2202.05262)."""

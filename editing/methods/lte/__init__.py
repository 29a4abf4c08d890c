"""LTE, Learning to Edit (arXiv 2402.11905)."""

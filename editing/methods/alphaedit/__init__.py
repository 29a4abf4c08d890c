"""AlphaEdit (arXiv 2410.02355)."""

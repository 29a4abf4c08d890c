"""StableKE (arXiv 2402.13048)."""

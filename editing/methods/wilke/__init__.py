"""WilKE (arXiv 2402.10987)."""

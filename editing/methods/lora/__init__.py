"""LoRA (arXiv 2106.09685), an adapter an edit."""

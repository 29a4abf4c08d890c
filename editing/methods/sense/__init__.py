"""Sense finetuning by canonical examples (arXiv 2402.06155)."""

"""FT-M: finetuning of one layer on the target's tokens."""

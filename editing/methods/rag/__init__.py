"""Retrieval in the prompt."""

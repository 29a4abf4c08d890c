"""The edited model: patched layer, sessions, provenance, live edits, saving."""

"""The frozen model in parts: loading, decoder, prefix, suffix, head."""

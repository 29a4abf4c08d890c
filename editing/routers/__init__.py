"""Which edit a request is about: by tokens, by masks of features."""

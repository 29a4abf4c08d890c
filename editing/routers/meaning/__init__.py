"""Which edit a request is about, by what it asks: sentences, subjects, an encoder, decoys and a fitted rule."""

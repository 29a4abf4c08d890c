"""Each edit's own rows, read by softmax."""

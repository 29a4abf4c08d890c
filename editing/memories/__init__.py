"""What edits are kept in: rows of one edit each, a shared matrix, shards."""

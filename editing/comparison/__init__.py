"""Methods beside each other: runs over one file of edits, and a report of what came of them."""

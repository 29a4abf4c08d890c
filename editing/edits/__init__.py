"""What a user brings: edits, file formats, templates, prompts."""

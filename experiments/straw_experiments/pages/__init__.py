"""Pages of results: Markdown templates, filled with what the studies left."""

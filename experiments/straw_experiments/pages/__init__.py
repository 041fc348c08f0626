"""The pages of results, from what the studies left."""

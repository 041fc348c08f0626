"""Tasks: which kind of weights, written for a context, helps where."""

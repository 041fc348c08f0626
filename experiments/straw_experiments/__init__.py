"""The experiments: three studies, and what they share; need the extra "experiments"."""

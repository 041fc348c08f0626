"""Per-sample low-rank weights for JAX and Flax."""

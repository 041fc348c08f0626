"""Character-level language modelling by cells whose weights change; needs "experiments"."""

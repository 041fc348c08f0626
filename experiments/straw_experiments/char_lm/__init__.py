"""Character-level language modelling by cells whose weights change at every step."""

from straw_experiments import require_extra

require_extra()

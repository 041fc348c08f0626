"""PyTorch's default initialisation, which the published figures rest on."""

import jax
from flax import linen as nn
from jax.nn.initializers import Initializer

#: Uniform in +-1 / sqrt(fan in), for kernels `[*window, in, out]`.
kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def bias_init(fan_in: int) -> Initializer:
    """Return an initialiser, uniform in +-1 / sqrt(fan_in): biases do not know their fan in."""

    def init(key, shape, dtype=float, out_sharding=None):  # type: ignore[no-untyped-def]
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return init

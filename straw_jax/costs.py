"""The cost of a model in multiply-adds, counted in its jaxpr."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def multiply_adds(function: Callable[..., Any], *args: Any) -> int:
    """Count the multiply-adds of a function's matrix products and convolutions.

    Traces the function and computes nothing. The body of a loop of known length counts once for
    each iteration, that of a `while` loop once in all, and of a branch the most expensive case.

    Args:
        function: any JAX function.
        *args: its arguments, or `jax.ShapeDtypeStruct` in place of arrays.

    Returns:
        Multiply-adds of one call.

    Example:
        A product of 2 x 3 and 3 x 4 matrices, without and with a second one of rank 1:

        >>> import jax.numpy as jnp
        >>> from straw_jax import hyperlora, multiply_adds
        >>> x, W = jnp.ones((2, 3)), jnp.ones((3, 4))
        >>> multiply_adds(jnp.matmul, x, W)
        24
        >>> multiply_adds(hyperlora, x, jnp.ones((3, 1)), jnp.ones((1, 4)), W)
        38
    """
    return _in_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def _in_jaxpr(jaxpr: core.Jaxpr) -> int:
    return sum(_in_equation(equation) for equation in jaxpr.eqns)


def _in_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    out = equation.outvars[0].aval
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return math.prod(out.shape) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out_features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return math.prod(out.shape) * math.prod(kernel) // out_features
    inner = [_in_jaxpr(jaxpr) for jaxpr in nested_jaxprs(params)]
    if name == "cond":
        return max(inner)
    return params.get("length", 1) * sum(inner) if name == "scan" else sum(inner)


def nested_jaxprs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """Yield the programs inside of an operation: a loop's body, a branch, or a call.

    Args:
        params: of an equation of a jaxpr.

    Yields:
        Jaxprs.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax.costs import nested_jaxprs
        >>> (call,) = jax.make_jaxpr(jax.jit(jnp.sin))(1.0).eqns
        >>> [len(jaxpr.eqns) for jaxpr in nested_jaxprs(call.params)]
        [1]
    """
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else [value]:
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item

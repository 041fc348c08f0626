"""Adapters by index: a batch whose samples have different ones, in five ways, on this machine.

Prints a Markdown table: CPU seconds and temporary bytes of a compiled call.

    python benchmarks/index.py
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import alone  # noqa: F401  It goes first: then no extra is needed.
import jax
import jax.numpy as jnp
from jax import Array

from straw_jax import Factors, materialize, modulate
from straw_jax.lift import take

Weights = dict[str, Array]


def model(params: Weights, x: Array) -> Array:
    """Compute two dense layers."""
    return jax.nn.relu(x @ params["up"]) @ params["down"]


def make_arguments(adapters: int, batch: int, width: int, rank: int) -> tuple[Any, ...]:
    """Return noise: parameters, a bank, samples `[batch, width]`, and a number for each."""
    keys = jax.random.split(jax.random.key(0), 8)
    params = {
        "up": jax.random.normal(keys[0], (width, width)) / width**0.5,
        "down": jax.random.normal(keys[1], (width, width)) / width**0.5,
    }
    bank = {
        name: Factors(
            jax.random.normal(keys[2 + i], (adapters, width, rank)) / width**0.5,
            jax.random.normal(keys[4 + i], (adapters, rank, width)) / rank**0.5,
        )
        for i, name in enumerate(params)
    }
    x = jax.random.normal(keys[6], (batch, width))
    return params, bank, x, jax.random.randint(keys[7], (batch,), 0, adapters)


def base(params: Weights, bank: Any, x: Array, ids: Array) -> Array:
    """Compute without adapters."""
    return model(params, x)


def by_index(params: Weights, bank: Any, x: Array, ids: Array) -> Array:
    """Compute by `modulate(...)(..., index=ids)`."""
    return modulate(model)(params, bank, x, index=ids)


def repeated(params: Weights, bank: Any, x: Array, ids: Array) -> Array:
    """Repeat factors for each sample."""
    return modulate(model)(params, take(params, bank, ids), x)


def looped(params: Weights, bank: Any, x: Array, ids: Array) -> Array:
    """Run all samples through one adapter after the other, weights merged, and select."""

    def one(y: Array, i: Array) -> tuple[Array, None]:
        of_adapter = model(materialize(params, take(params, bank, i)), x)
        return jnp.where((ids == i)[:, None], of_adapter, y), None

    count = bank["up"].B.shape[0]
    return jax.lax.scan(one, jnp.zeros(x.shape, x.dtype), jnp.arange(count))[0]


def merged(params: Weights, bank: Any, x: Array, ids: Array) -> Array:
    """Merge the weights of each sample."""

    def one(x: Array, i: Array) -> Array:
        return model(materialize(params, take(params, bank, i)), x[None])[0]

    return jax.vmap(one)(x, ids)


WAYS: dict[str, Callable[..., Array]] = {
    "without adapters": base,
    "`index=ids`": by_index,
    "factors repeated per sample": repeated,
    "loop over adapters, merged": looped,
    "weights merged per sample": merged,
}


def measure(
    function: Callable[..., Array], arguments: tuple[Any, ...], repeats: int
) -> tuple[float, int, Array]:
    """Return CPU seconds of a call, the least of some, its temporary bytes, and its result."""
    compiled = jax.jit(function).lower(*arguments).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    y = jax.block_until_ready(compiled(*arguments))
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        jax.block_until_ready(compiled(*arguments))
        taken.append(time.process_time() - start)
    return min(taken), temporary, y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    print("| adapters | way | CPU ms | temporary MB |")
    print("|---|---|---|---|")
    for adapters in options.adapters:
        arguments = make_arguments(adapters, options.batch, options.width, options.rank)
        exact = None
        for name, way in WAYS.items():
            repeats = options.repeats if way in (base, by_index, repeated) else 2
            seconds, temporary, y = measure(way, arguments, repeats)
            if way is by_index:
                exact = y
            elif way is not base and not jnp.allclose(y, exact, atol=1e-2):
                raise ValueError(f"expected the same results of {name} as of index=ids")
            cells = adapters, name, f"{1e3 * seconds:.1f}", f"{temporary / 1e6:.1f}"
            print("|", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    main()

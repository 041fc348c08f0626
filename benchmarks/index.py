"""Adapters by index: a batch whose samples have different ones, in some ways, on this machine.

Prints a Markdown table: CPU seconds and temporary bytes of a compiled call, the least of some calls
of all ways in turn.

    python benchmarks/index.py
    python benchmarks/index.py --tokens 4096 --width 512  # one packed sequence, a number a token
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
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


def with_adapters(multiply: Callable[..., Array], params: Weights, bank: Any, x: Array) -> Array:
    """Compute the two layers, with a function from vectors and factors to what an adapter adds."""

    def layer(x: Array, name: str) -> Array:
        return x @ params[name] + multiply(x, bank[name].B, bank[name].A)

    return layer(jax.nn.relu(layer(x, "up")), "down")


def all_masked(params: Weights, bank: Any, x: Array, ids: Array) -> Array:
    """Multiply by the factors of all adapters as one matrix, and mask others' products."""

    def multiply(x: Array, B: Array, A: Array) -> Array:
        count, width, rank = B.shape
        products = (x @ B.swapaxes(0, 1).reshape(width, -1)).reshape(-1, count, rank)
        own = jnp.where((ids[:, None] == jnp.arange(count))[..., None], products, 0)
        return own.reshape(-1, count * rank) @ A.reshape(count * rank, -1)

    return with_adapters(multiply, params, bank, x)


def ragged(params: Weights, bank: Any, x: Array, ids: Array) -> Array:
    """Sort vectors by number, and multiply each group by its factors."""
    order = jnp.argsort(ids)
    sizes = jnp.bincount(ids, length=bank["up"].B.shape[0])

    def multiply(x: Array, B: Array, A: Array) -> Array:
        return jax.lax.ragged_dot(jax.lax.ragged_dot(x, B, sizes), A, sizes)

    return jnp.zeros_like(x).at[order].set(with_adapters(multiply, params, bank, x[order]))


WAYS_OF_TOKENS: dict[str, Callable[..., Array]] = {
    "without adapters": base,
    "`index=ids`": by_index,
    "factors repeated per token": repeated,
    "loop over adapters, merged": looped,
    "products with all adapters, masked": all_masked,
    "sorted, `ragged_dot`": ragged,
}


def measure(
    ways: dict[str, Callable[..., Array]], arguments: tuple[Any, ...], repeats: int
) -> dict[str, tuple[float, int]]:
    """Return CPU seconds of a call, the least of some, and its temporary bytes, of each way."""
    seconds: dict[str, float] = {}
    compiled, exact = {}, jax.jit(ways["`index=ids`"])(*arguments)
    for name, way in ways.items():
        compiled[name] = jax.jit(way).lower(*arguments).compile()
        y = compiled[name](*arguments)
        if way is not base and not jnp.allclose(y, exact, atol=1e-2):
            raise ValueError(f"expected the same results of {name} as of index=ids")
    for turn in range(repeats):
        for name, call in compiled.items():
            if turn > 1 and seconds[name] > 1:
                continue  # the slowest twice
            start = time.process_time()
            jax.block_until_ready(call(*arguments))
            seconds[name] = min(seconds.get(name, math.inf), time.process_time() - start)
    return {
        name: (seconds[name], call.memory_analysis().temp_size_in_bytes)
        for name, call in compiled.items()
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--tokens", type=int, help="a number for each of so many, in place of one")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    print("| adapters | way | CPU ms | temporary MB |")
    print("|---|---|---|---|")
    vectors, ways = options.batch, WAYS
    if options.tokens:
        vectors = options.tokens
        packed = partial(_packed, by_index)
        ways = WAYS_OF_TOKENS | {"`index=ids`": packed}
    for adapters in options.adapters:
        arguments = make_arguments(adapters, vectors, options.width, options.rank)
        for name, (seconds, temporary) in measure(ways, arguments, options.repeats).items():
            cells = adapters, name, f"{1e3 * seconds:.1f}", f"{temporary / 1e6:.1f}"
            print("|", " | ".join(map(str, cells)), "|", flush=True)


def _packed(way: Callable[..., Array], params: Weights, bank: Any, x: Array, ids: Array) -> Array:
    """Compute of vectors as of the tokens of one sequence."""
    return way(params, bank, x[None], ids[None])[0]


if __name__ == "__main__":
    main()

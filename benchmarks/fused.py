"""Time generating and applying factors in one kernel against forming them, forward and backward.

    python benchmarks/fused.py --batch-size 128 --positions 1 --rows 16 --columns 8192

One factor [rows, columns] a sample, of a hidden vector. It needs a GPU or TPU: elsewhere the kernel
is interpreted, and its time would say nothing.
"""

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from measure import summary
from tables import columns
from worker import timed

from straw_experiments.runner import limits
from straw_experiments.runner.environment import device
from straw_experiments.runner.limits import SIZE
from straw_experiments.runner.readers import whole
from straw_experiments.runner.settings import Parser
from straw_jax.fused import generate_and_apply
from straw_jax.lowrank import Generated, apply_factor

PLAIN, FUSED = "plain", "one kernel"
TOLERANCE = 2e-2  # with which GPUs and TPUs multiply matrices of float32 by default


def parse() -> argparse.Namespace:
    parser = Parser("fused.py", __doc__.splitlines()[0])
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    sizes = {"batch-size": 128, "positions": 1, "rows": 16, "columns": 8192, "hidden": 128}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=whole(1, SIZE), default=default)
    parser.add_argument("--repeats", type=whole(1, 10**6), default=50)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    try:
        numbers = sum(map(math.prod, shapes(args)))
        limits.check("argument --batch-size and others:", 2 * numbers, "the arrays alone")
    except ValueError as error:
        parser.error(str(error))
    return args


def shapes(args: argparse.Namespace) -> list[tuple[int, ...]]:
    """Return the shapes of the layer's input, the hidden vector, and the head's kernel and bias."""
    batch, h, m, n = args.batch_size, args.hidden, args.rows, args.columns
    return [(batch, args.positions, m), (batch, h), (m, n, h), (m, n)]


def main() -> None:
    args = parse()
    if jax.default_backend() not in ("gpu", "tpu"):
        print(
            f"fused.py: expected a GPU or TPU, got {device()}: there the kernel is interpreted.",
            file=sys.stderr,
        )
        sys.exit(2)
    arrays = noise(shapes(args), args.dtype)
    print(f"{device()}; {args.dtype}, " + ", ".join(map(str, shapes(args))))
    for name, compiled in programs().items():
        found = difference(compiled, arrays)
        print(f"\n{name}: largest relative difference {found:.1e}")
        if not found < TOLERANCE:
            sys.exit("fused.py: the two do not agree; their times are not compared.")
        cases = {key: lambda f=f: jax.block_until_ready(f(*arrays)) for key, f in compiled.items()}
        seconds: dict[str, list[float]] = {key: [] for key in cases}
        for _ in range(args.repeats):
            for key, case in cases.items():
                seconds[key].append(timed(case))
        rows = summary({key: {"seconds": times} for key, times in seconds.items()}, PLAIN)
        figures = [
            [key, *(f"{row[k] * 1e3:.3f}" for k in ("min", "median")), f"{row['min_ratio']:.2f}"]
            for key, row in rows.items()
        ]
        print(columns([["", "min, ms", "median, ms", f"x {PLAIN}"], *figures]))


def noise(shapes: Sequence[tuple[int, ...]], dtype: str) -> list[jax.Array]:
    """Return arrays of these shapes."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def plain(x: jax.Array, hidden: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Apply what hidden vectors generate, as `modulate` does by default."""
    return jax.vmap(lambda x, hidden: apply_factor(x, Generated(hidden, kernel, bias)))(x, hidden)


def programs() -> dict[str, dict[str, Callable[..., object]]]:
    """Return jitted functions of the four arrays, by pass and by method."""
    functions = {PLAIN: plain, FUSED: generate_and_apply}
    return {
        name: {key: wrap(function) for key, function in functions.items()}
        for name, wrap in {"forward": jax.jit, "forward and backward": gradient}.items()
    }


def difference(compiled: Mapping[str, Callable[..., object]], arrays: list[jax.Array]) -> float:
    """Return the largest relative difference between the results of two methods."""
    first, second = (jax.tree.leaves(function(*arrays)) for function in compiled.values())
    pairs = zip(first, second, strict=True)
    return max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(a))) for a, b in pairs)


def gradient(function: Callable[..., jax.Array]) -> Callable[..., object]:
    """Return the gradient of a sum of the results' sines, jitted."""
    return jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(function(*a))), (0, 1, 2, 3)))


if __name__ == "__main__":
    main()

"""Time and bytes of a gated MLP with quantised kernels and low-rank factors, beside float32.

`python benchmarks/quantised.py [--tokens 1 512] [--widths 576 1536 2048]`; one sample of so many
tokens, rank 8, forward, layers in a scan: enough that no cache holds their float32 kernels. Each
form is timed in turn, and the minimum counts. Bytes are those of the stored kernels, and of the
arrays that the compiled program makes on its way.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

HIDDEN = {576: 1536, 1536: 4096, 2048: 5632}  # of the MLP, by width
RANK, STORED = 8, 100_000_000  # bytes of float32, at least
FORMS: dict[str, dict[str, Any] | None] = {
    "float32": None,
    "int8": {"bits": 8},
    "int8, blocks of 32": {"bits": 8, "block": 32},
    "int4": {"bits": 4},
    "int4, blocks of 32": {"bits": 4, "block": 32},
    "int4, blocks of 32, minima": {"bits": 4, "block": 32, "symmetric": False},
}


def cases(width: int, hidden: int, tokens: int, stored: int) -> dict[str, Callable[[], Any]]:
    """Return a function to time for each form, with its `bytes` and `temporary` bytes."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from straw_jax import Factors, modulate, quantise

    rng = np.random.default_rng(0)
    shapes = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    count = max(1, -(-stored // (12 * width * hidden)))

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) / shape[-2] ** 0.5

    layers = {name: normal(count, *shape) for name, shape in shapes.items()}
    factors = {
        name: Factors(
            jnp.asarray(normal(1, count * rows, RANK)),
            jnp.asarray(normal(1, RANK, count * columns)),
            "src",
        )
        for name, (rows, columns) in shapes.items()
    }
    x = jnp.asarray(normal(1, tokens, width))

    def model(params: Any, x: Any) -> Any:
        def layer(x: Any, own: Any) -> Any:
            return x + (jax.nn.silu(x @ own["gate"]) * (x @ own["up"])) @ own["down"], None

        return jax.lax.scan(layer, x, params)[0]

    apply = modulate(model)
    found: dict[str, Callable[[], Any]] = {}
    for name, options in FORMS.items():
        kernel = (
            jnp.asarray if options is None else lambda W, o=options: quantise(W, axes="src", **o)
        )
        params = jax.tree.map(kernel, layers)
        program = jax.jit(apply).lower(params, factors, x).compile()

        def run(program: Any = program, params: Any = params) -> Any:
            return jax.block_until_ready(program(params, factors, x))

        run.bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))  # type: ignore[attr-defined]
        run.temporary = program.memory_analysis().temp_size_in_bytes  # type: ignore[attr-defined]
        found[name] = run
    return found


def timed(runs: dict[str, Callable[[], Any]], rounds: int, seconds: float) -> dict[str, float]:
    """Return the least seconds of each function, of some rounds in which all take turns."""
    best = dict.fromkeys(runs, float("inf"))
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            end = time.perf_counter() + seconds
            while True:
                start = time.perf_counter()
                run()
                best[name] = min(best[name], time.perf_counter() - start)
                if time.perf_counter() > end:
                    break
    return best


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", choices=HIDDEN, default=list(HIDDEN))
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 512])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stored", type=int, default=STORED, help="bytes of float32 kernels")
    chosen = parser.parse_args()
    for tokens in chosen.tokens:
        print(f"| {tokens} tokens | ms | time | MB stored | bytes | MB temporary |")
        print("|---|---|---|---|---|---|")
        for width in chosen.widths:
            runs: Any = cases(width, HIDDEN[width], tokens, chosen.stored)
            best = timed(runs, chosen.rounds, 0.2)
            for name, run in runs.items():
                print(
                    f"| {width}: {name} | {1e3 * best[name]:.1f} |"
                    f" {best[name] / best['float32']:.2f} | {run.bytes / 1e6:.1f} |"
                    f" {run.bytes / runs['float32'].bytes:.3f} | {run.temporary / 1e6:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()

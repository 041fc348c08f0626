"""Damage to a saved model, and what reading it makes of that."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from straw_experiments.faults.damage import damage
from straw_experiments.faults.outcomes import Kind, Outcome, Trial
from straw_jax import load_exported, save_exported

_KEY = b"a key"


def prepare(place: Path) -> Kind:
    """Save two models of one shape, one of them with a key."""
    x = jnp.linspace(-1, 1, 12).reshape(4, 3)
    paths = {"plain": place / "plain", "with a key": place / "keyed"}
    for seed, (name, path) in enumerate(paths.items()):
        params = {"W": jnp.full((3, 2), 0.5 + seed), "bias": jnp.arange(2.0)}
        key = _KEY if name == "with a key" else None
        save_exported(path, _apply, params, x, platforms=["cpu"], key=key)
    expected = {name: np.asarray(_load(path, name)(x)) for name, path in paths.items()}
    whole = {name: path.read_bytes() for name, path in paths.items()}

    def trial(rng: np.random.Generator, number: int) -> Trial:
        del number
        for name, path in paths.items():
            path.write_bytes(whole[name])
        name = list(paths)[int(rng.integers(len(paths)))]
        done = [damage(rng, paths[name], [])]
        if rng.integers(2) and paths[name].exists():
            done.append(damage(rng, paths[name], []))
        fault = f"{name}: {', '.join(done)}"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                found = np.asarray(_load(paths[name], name)(x))
            except (ValueError, FileNotFoundError) as error:
                named = str(paths[name]) in str(error) and "\n" not in str(error)
                return Trial(fault, Outcome.REFUSED if named else Outcome.TRACEBACK, str(error))
            except Exception as error:
                return Trial(fault, Outcome.TRACEBACK, f"{type(error).__name__}: {error}")
        same = np.array_equal(found, expected[name])
        return Trial(fault, Outcome.IDENTICAL if same else Outcome.SILENT)

    return trial


def _apply(params: Any, x: jax.Array) -> jax.Array:
    return x @ params["W"] + params["bias"][None]


def _load(path: Path, name: str) -> Callable[..., Any]:
    return load_exported(path, key=_KEY if name == "with a key" else None)

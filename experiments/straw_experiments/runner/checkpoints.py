"""Checkpoints that are verified when they are read.

Orbax loads damaged array data as wrong values, and casts a wrong dtype, without a word. Each
checkpoint therefore holds the shape, the dtype and a checksum of every leaf beside the arrays.

Arrays are whole, as on one host: a checkpoint fits any number of devices. Where several processes
train, the first alone calls these functions (`hosts`).
"""

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from straw_experiments.runner import records, signals


def _is_of_others(record: logging.LogRecord) -> bool:
    return "orbax" not in Path(record.pathname).parts


# Orbax logs, with tracebacks, what it raises; its threads do so even after it has raised.
logging.getLogger("absl").addFilter(_is_of_others)


class CheckpointError(ValueError):
    """No checkpoint of a folder can be trusted."""


def save(
    folder: Path,
    step: int,
    tree: Any,
    *,
    keep: int = 2,
    history: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write a checkpoint, which is whole on disk on return.

    Checkpoints of this and later steps are replaced: they can only be ones that `restore`
    refused before it fell back to an older one.

    Args:
        folder: Where the checkpoints of one run lie.
        step: The checkpoint's number.
        tree: Arrays.
        keep: How many of the latest to keep.
        history: Records of all epochs until then, for `history` to read.

    Raises:
        OSError: It was not written.
    """
    args = ocp.args.Composite(
        tree=ocp.args.StandardSave(tree),
        leaves=ocp.args.JsonSave(_checksums(tree)),
        history=ocp.args.JsonSave(records.sealed({"epochs": list(history)}, folder.parent.name)),
    )
    try:
        with _manager(folder, keep) as manager:
            for stale in manager.all_steps():
                if stale >= step:
                    manager.delete(stale)
            written = manager.save(step, args=args)
    except OSError:
        raise
    # The array store below orbax raises what it likes where a file cannot be written.
    except Exception as error:
        raise _failed_write(folder, error) from error
    if not written:
        raise OSError(f"{folder}: step {step} was not written")
    records.sync(*(folder / str(step)).rglob("*"), folder / str(step), folder)


def history(folder: Path) -> list[dict[str, Any]] | None:
    """Read what `save` was given as the history with the latest checkpoint.

    Args:
        folder: Where the checkpoints lie; it need not exist.

    Returns:
        It; None where there is none, as in a checkpoint of an earlier version, or it is damaged.
    """
    newest = latest(folder)
    if newest is None:
        return None
    args = ocp.args.Composite(history=ocp.args.JsonRestore())
    with _manager(folder) as manager:
        try:
            stored = manager.restore(int(newest.name), args=args).history
            return list(records.opened(stored, folder.parent.name)["epochs"])
        # As in `restore`: damage can surface in any layer.
        except Exception:
            return None


def restore(folder: Path, like: Any, *, begin_anew: Path | None = None) -> tuple[int, Any] | None:
    """Read the latest checkpoint that is whole, with a warning for each later one that is not.

    Args:
        folder: Where the checkpoints lie; it need not exist.
        like: The tree to expect, as `jax.ShapeDtypeStruct` or arrays: every leaf's shape and dtype
            must be exactly the stored one's.
        begin_anew: What to delete so that the model is trained again; by default `folder`.

    Returns:
        Step and tree of JAX arrays, or None where there is no checkpoint.

    Raises:
        CheckpointError: There are checkpoints, and none is whole.
    """
    if not folder.exists():
        return None
    faults = []
    with _manager(folder) as manager:
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                tree = _read(manager, step, like)
            # Damage can surface in any layer below: JSON, the array store, orbax, or our own check.
            except Exception as error:
                faults.append(f"step {step}: {_first_line(error)}")
                continue
            if faults:
                warnings.warn(
                    f"checkpoint damaged ({'; '.join(faults)}): falling back to step {step} of"
                    f" {folder}",
                    stacklevel=2,
                )
            return step, tree
    if not faults:
        return None
    raise CheckpointError(
        f"checkpoints: no checkpoint in {folder} can be used ({'; '.join(faults)}). Delete"
        f" {begin_anew or folder}, and use --resume to train this model again"
    )


def latest(folder: Path) -> Path | None:
    """Name the folder of the newest checkpoint, or None where there is none."""
    if not folder.exists():
        return None
    with _manager(folder) as manager:
        step = manager.latest_step()
    return None if step is None else folder / str(step)


def _failed_write(folder: Path, error: Exception) -> OSError:
    if found := re.search(r"os_error_code='(\d+)'", str(error)):
        number = int(found[1])
        return OSError(number, os.strerror(number), str(folder))
    return OSError(f"{folder}: a checkpoint was not written: {_first_line(error)}")


@contextlib.contextmanager
def _manager(folder: Path, keep: int | None = None) -> Iterator[ocp.CheckpointManager]:
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        # Not asynchronous: the next step donates the very buffers that are being written.
        enable_async_checkpointing=False,
        create=False,  # orbax would ask all processes, where only the first comes here
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            active_processes={0}, barrier_sync_key_prefix="first"
        )
        if jax.process_count() > 1
        else ocp.options.MultiprocessingOptions(),
    )
    with (
        signals.held(),
        ocp.CheckpointManager(folder, options=options) as manager,
    ):
        yield manager


def _read(manager: ocp.CheckpointManager, step: int, like: Any) -> Any:
    leaves = manager.restore(step, args=ocp.args.Composite(leaves=ocp.args.JsonRestore())).leaves
    stored = {path: (leaf["shape"], leaf["dtype"]) for path, leaf in leaves.items()}
    for path, expected in _shapes(like).items():
        if stored.pop(path, None) != expected:
            raise ValueError(
                f"expected {path} with shape and dtype {expected}, got {leaves.get(path)}"
            )
    if stored:
        raise ValueError(f"expected no leaves {sorted(stored)}")
    # Read into NumPy: orbax reads damaged data into JAX arrays with errors in other threads.
    hosted = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
    args = ocp.args.Composite(tree=ocp.args.StandardRestore(hosted))
    tree = manager.restore(step, args=args).tree
    for path, found in _checksums(tree).items():
        if found != leaves[path]:
            raise ValueError(f"{path} does not match its checksum")
    return _copied(tree)


@jax.jit
def _copied(tree: Any) -> Any:
    """Copy arrays that NumPy owns, which could not be donated: as one program, not one a shape."""
    return jax.tree.map(jnp.copy, tree)


def _shapes(tree: Any) -> dict[str, tuple[list[int], str]]:
    return {
        jax.tree_util.keystr(path): (list(leaf.shape), str(leaf.dtype))
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _checksums(tree: Any) -> dict[str, dict[str, Any]]:
    flat = {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
    return {
        path: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "crc32": _crc32(leaf)}
        for path, leaf in flat.items()
    }


def _crc32(leaf: np.ndarray) -> int:
    # As bytes, since bfloat16 has no buffer interface of its own.
    return records.checksum(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]

"""Prediction with a trained model: few compilations, and the whole model in one file.

A model is a pure function `apply(params, x, **kwargs) -> y` that maps a batch to a batch, sample by
sample, such as `Straw.apply`. A saved model runs without Flax and without the model's code.
"""

import contextlib
import hashlib
import hmac
import importlib.util
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export

from straw_jax import expect, kinds

BATCH_SIZES = (1, 8, 32, 128, 512)
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

# A saved model is an uncompressed zip archive: header, program, and one file for each parameter,
# little-endian, as on every machine that runs JAX. Zip checks a CRC-32 of each; the archive's
# comment has digests of all bytes before it. Version 1, of straw_jax 0.2 and earlier, had none.
_FORMAT, _VERSION = "straw_jax exported model", 2
_HEADER, _PROGRAM = "header.json", "program"
_COMMENT = re.compile(rb"(sha256 [0-9a-f]{64})(?: hmac-sha256 [0-9a-f]{64})?\Z")
_MOST_COMMENT = 148  # bytes
_MOST_HEADER = 2**23  # bytes; a header has a hundred for each parameter
_MOST_PARTS = 100_000
_FIELDS = {"jax": str, "platforms": list, "inputs": list, "outputs": list, "parameters": list}


def _register(update: type[kinds.Update]) -> None:
    """Let updates be inputs and outputs of a program, which writes their type by this name."""

    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    export.register_pytree_node_serialization(
        update,
        serialized_name=f"straw_jax.kinds.{update.__name__}",
        serialize_auxdata=lambda static: json.dumps(static).encode(),
        deserialize_auxdata=lambda raw: tuples(json.loads(raw)),
    )


for _update in kinds.UPDATES:
    _register(_update)


def predictor(
    apply: Callable[..., Any],
    params: Any,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    shared: str | Iterable[str] | Mapping[str, Any] = (),
) -> Callable[..., Any]:
    """Compile a model for any number of samples, at most once for each of a few batch sizes.

    A batch is padded to the next of the sizes with copies of a sample, whose results are dropped;
    more samples than the largest size are processed in chunks. Predictors of the same function
    share compiled programs.

    Args:
        apply: `(params, x, **kwargs) -> y`, batch to batch, sample by sample.
        params: its first argument, any tree.
        batch_sizes: sizes to compile for, each at its first use.
        shared: names of keyword arguments that all samples have in common, without a sample axis,
            such as one adapter, or a bank of them; or a dict from names to trees of 0 and None, as
            `in_axes` of `jax.vmap` has them: None for what all samples have in common, 0 for what
            has a sample axis. They are passed as they are.

    Returns:
        `predict(x, **kwargs) -> y`. `x` and each other keyword argument is an array `[n, ...]` (of
        JAX or NumPy) or a tree of them, all with the same `n >= 0`; `y` is a JAX array `[n, ...]`
        or a tree of them. `predict` can be used in `jax.jit` and `jax.grad`.

    Raises:
        ValueError: if the sizes are not positive numbers, the parameters no arrays, or `shared` no
            names or axes; by `predict`, if inputs or outputs are not batches of one size.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import predictor
        >>> predict = predictor(lambda params, x: x @ params, jnp.ones((3, 2)), batch_sizes=(1, 4))
        >>> predict(jnp.ones((7, 3))).shape  # as batches of 4 and 3
        (7, 2)
    """
    sizes = list(batch_sizes) if hasattr(batch_sizes, "__iter__") else []
    if not sizes or not all(expect.is_whole(size) and size > 0 for size in sizes):
        raise ValueError(
            f"predictor: expected positive batch_sizes, as in (1, 32), got {batch_sizes!r}."
        )
    sizes.sort()
    if not callable(apply) or not all(map(expect.is_number, jax.tree.leaves(params))):
        raise ValueError(
            "predictor: expected a function apply(params, x) and a tree of arrays as params, got"
            f" {expect.describe(apply)} and {expect.describe(params)}. Bind other things to apply"
            " with functools.partial."
        )
    axes = _axes("predictor", shared)
    params = jax.device_put(params)
    run = jax.jit(apply)

    def predict(x: Any, **kwargs: Any) -> Any:
        inputs, own = _inputs("predict", x, kwargs, axes)
        n = jax.tree.leaves(inputs["x"])[0].shape[0]
        if n == 0:
            y = _call(partial(jax.eval_shape, run), params, _specs(inputs, own, sizes[0]))
            return jax.tree.map(lambda leaf: jnp.zeros((0, *leaf.shape[1:]), leaf.dtype), y)
        results = []
        for start in range(0, n, sizes[-1]):
            stop = min(start + sizes[-1], n)
            size = next(size for size in sizes if size >= stop - start)
            y = _call(run, params, _cut(inputs, own, start, stop, size))
            results.append(_first(y, stop - start, size))
        if len(results) == 1:
            return results[0]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *results)

    return predict


def save_exported(
    path: str | os.PathLike[str],
    apply: Callable[..., Any],
    params: Any,
    sample: Any,
    *,
    platforms: Sequence[str] | None = None,
    key: bytes | None = None,
    shared: str | Iterable[str] | Mapping[str, Any] = (),
    **kwargs: Any,
) -> None:
    """Write a model to one file, which `load_exported` runs without the model's code.

    The file has the program, for any batch size, and the parameters; its header lists them
    (`unzip -p FILE header.json`), its comment is the SHA-256 of all before it (`unzip -z FILE`). It
    loads in the version of JAX that wrote it and in later ones.
    The program contains the names of the source files that it was traced from, unless
    `jax_traceback_in_locations_limit` is 0.

    Args:
        path: of the file. An existing file is replaced once the new one is complete.
        apply: `(params, x, **kwargs) -> y`, batch to batch, sample by sample.
        params: its first argument, any tree of arrays.
        sample: an input `[n, ...]`, or a tree of them in dicts, lists and tuples; only shapes and
            dtypes are used.
        platforms: where the file can run, of "cpu", "cuda", "rocm" and "tpu"; by default the
            platform of this process. This library computes convolutions differently on different
            platforms, and chooses by the exporting one: for full speed, export on the platform
            that runs the file.
        key: secret, of any length. The file then has an HMAC of it, too, by which `load_exported`
            with the same key knows that nobody else made or changed the file.
        shared: as for `predictor`, of the arguments in `kwargs`: what all samples have in common,
            such as one adapter, a bank of them, or the templates of a mixture. Its sizes are those
            of the sample.
        **kwargs: samples of the keyword arguments that `predict` will take, such as `context`. They
            may be, or hold, `Factors`: adapters that are exchanged without compiling again.

    Raises:
        ValueError: if a parameter is not an array of numbers, inputs or outputs are not batches,
            `shared` does not fit, a platform is unknown, or the key is not bytes. An error that
            `apply` raises while it is traced for any batch size gets a note with the usual causes.
        ImportError: if flatbuffers is not installed.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from straw_jax import load_exported, save_exported
        >>> params, sample = jnp.ones((3, 2)), jnp.ones((1, 3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_exported(f"{folder}/model.zip", lambda params, x: x @ params, params, sample)
        ...     predict = load_exported(f"{folder}/model.zip")
        >>> predict(jnp.ones((5, 3))).shape
        (5, 2)
    """
    _need_flatbuffers("save_exported")
    _check_key("save_exported", key)
    if platforms is not None and not (platforms and set(platforms) <= set(PLATFORMS)):
        raise ValueError(f"save_exported: expected platforms of {PLATFORMS}, got {platforms!r}.")
    params = _parameters(params)
    axes = _axes("save_exported", shared)
    if unknown := sorted(set(axes) - set(kwargs)):
        raise ValueError(
            f"save_exported: expected shared to name some of the inputs {sorted(kwargs)}, got"
            f" {unknown}. Give a sample of each."
        )
    inputs = _specs(
        *_inputs("save_exported", sample, kwargs, axes), *export.symbolic_shape("batch")
    )
    exported, program = _export(apply, params, inputs, platforms)
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "jax": jax.__version__,
        "platforms": exported.platforms,
        "inputs": _described(inputs),
        "outputs": _described(_outputs(exported)),
        "parameters": _described(params),
    }
    _write(Path(path), header, program, jax.tree.leaves(params), key)


def load_exported(
    path: str | os.PathLike[str],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    key: bytes | None = None,
) -> Callable[..., Any]:
    """Read a model that `save_exported` wrote.

    Load only files that you trust: the program runs with all rights of this process. The SHA-256
    shows damage; whoever changes a file can change it, too, but the HMAC only with the key. Files
    of straw_jax 0.2 and earlier have neither, and are read without a key: there the CRC-32 of each
    part shows damage.

    Args:
        path: of the file.
        batch_sizes: as for `predictor`.
        key: refuse the file unless it was saved with this key.

    Returns:
        `predict(x, **kwargs) -> y`, as from `predictor`, for any number of inputs of the saved
        samples' shapes and dtypes. It can be used in `jax.jit`, not in `jax.grad` or `jax.vmap`.

    Raises:
        ValueError: if the file is damaged, of another kind, of a newer format, from a later version
            of JAX, for another platform, saved without the key, or needs 64-bit numbers that are
            off in this process; by `predict`, if an input does not have the expected names, shapes
            and dtypes.
        OSError: if the file cannot be opened.
        ImportError: if flatbuffers is not installed.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from straw_jax import load_exported, save_exported
        >>> params, sample = jnp.ones((3, 2)), jnp.ones((1, 3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_exported(f"{folder}/model.zip", lambda params, x: x @ params, params, sample)
        ...     predict = load_exported(f"{folder}/model.zip", batch_sizes=(4,))
        >>> predict(jnp.ones((7, 3))).shape
        (7, 2)
    """
    _need_flatbuffers("load_exported")
    _check_key("load_exported", key)
    archive, header = _open(Path(path), key)
    with _damage_named(path):
        program = archive.read(_PROGRAM)
    exported = _deserialize(path, header, program)
    with _damage_named(path):
        (parameters, expected), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
        _check_header(header, exported, parameters, expected)
        leaves = _leaves(archive, parameters)

    def apply(leaves: list[Array], x: Any, **kwargs: Any) -> Any:
        return exported.call(leaves, {"x": x} | kwargs)

    axes = {
        name: jax.tree.map(lambda spec: 0 if _has_samples(spec) else None, each)
        for name, each in expected.items()
        if name != "x"
    }
    run = predictor(apply, leaves, batch_sizes=batch_sizes, shared=axes)

    def predict(x: Any, **kwargs: Any) -> Any:
        _check_names(expected, _with_arrays(x, kwargs))
        inputs, own = _inputs("predict", x, kwargs, axes)
        return run(**_as_expected(expected, inputs, own))

    return predict


# Batches


def _call(apply: Callable[..., Any], params: Any, inputs: dict[str, Any]) -> Any:
    kwargs = dict(inputs)
    return apply(params, kwargs.pop("x"), **kwargs)


def _has_samples(spec: Any) -> bool:
    """Return whether an input of a program has the batch, a symbol, as its first axis."""
    return bool(spec.shape) and not isinstance(spec.shape[0], int)


def _axes(where: str, shared: Any) -> dict[str, Any]:
    """Return which inputs have no sample axis: names to trees of None and 0."""
    shared = [shared] if isinstance(shared, str) else shared
    named = isinstance(shared, Mapping)
    names = list(shared) if named or isinstance(shared, Iterable) else [shared]
    axes = dict(shared) if named else dict.fromkeys(names)
    leaves = jax.tree.leaves(list(axes.values()), is_leaf=lambda axis: axis is None)
    fits = all(axis is None or (expect.is_whole(axis) and axis == 0) for axis in leaves)
    if not fits or "x" in axes or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{where}: expected shared to be names of keyword arguments, or a dict from names to"
            f" trees of 0 and None, got {shared!r}. x has a sample axis."
        )
    return axes


def _inputs(
    where: str, x: Any, kwargs: dict[str, Any], axes: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return all inputs as one tree of arrays, and which of them have a sample axis.

    Check that those have one batch size.
    """
    inputs = _with_arrays(x, kwargs)
    has_axis = {name: axes.get(name, 0) for name in inputs}
    flags = jax.tree.map(lambda axis: axis == 0, has_axis, is_leaf=lambda axis: axis is None)
    try:
        own = jax.tree.broadcast(flags, inputs)
    except ValueError as error:
        raise ValueError(
            f"{where}: expected shared to be trees like the inputs {expect.describe(inputs)}, got"
            f" {axes!r}. One None stands for all arrays of an input."
        ) from error
    pairs = list(zip(jax.tree.leaves(inputs), jax.tree.leaves(own), strict=True))
    batches = {leaf.shape[:1] for leaf, has_samples in pairs if has_samples}
    if len(batches) != 1 or () in batches or not all(expect.is_array(leaf) for leaf, _ in pairs):
        raise ValueError(
            f"{where}: expected arrays [batch, ...] with one batch size, got "
            f"{expect.describe(inputs)}. "
            "Give each input an axis of samples first, also where there is one sample; what all"
            " samples have in common is named in shared, of predictor and save_exported."
        )
    return inputs, own


def _with_arrays(x: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    inputs = dict(x=x, **kwargs)
    return jax.tree.map(lambda leaf: leaf if hasattr(leaf, "dtype") else np.asarray(leaf), inputs)


def _specs(inputs: dict[str, Any], own: dict[str, Any], batch: Any) -> dict[str, Any]:
    def spec(leaf: Any, has_samples: bool) -> jax.ShapeDtypeStruct:
        shape = (batch, *leaf.shape[1:]) if has_samples else leaf.shape
        return jax.ShapeDtypeStruct(shape, _dtype_here(leaf.dtype))

    return jax.tree.map(spec, inputs, own)


def _dtype_here(dtype: Any) -> Any:
    """Return the dtype that JAX uses for another: 32 bits for 64, unless `jax_enable_x64` is on."""
    return jax.dtypes.canonicalize_dtype(dtype, allow_extended_dtype=True)


def _cut(
    inputs: dict[str, Any], own: dict[str, Any], start: int, stop: int, size: int
) -> dict[str, Any]:
    """Return samples `start` to `stop`, padded to `size` with copies of the first of them."""

    def cut(leaf: Any, has_samples: bool) -> Any:
        if not has_samples:
            return leaf
        leaf = leaf[start:stop] if stop - start < leaf.shape[0] else leaf
        if leaf.shape[0] == size:
            return leaf
        # With a real sample: zeros may give NaN. NumPy arrays are padded on the host, where nothing
        # is compiled.
        library: Any = np if isinstance(leaf, np.ndarray) else jnp
        fill = library.broadcast_to(leaf[:1], (size - leaf.shape[0], *leaf.shape[1:]))
        return library.concatenate([leaf, fill])

    return jax.tree.map(cut, inputs, own)


def _first(y: Any, count: int, size: int) -> Any:
    """Return the results of the first samples of a batch."""
    if any(leaf.shape[:1] != (size,) for leaf in jax.tree.leaves(y)):
        raise ValueError(
            f"predict: expected the model to return arrays [{size}, ...] for {size} samples, got "
            f"{_list({'y': y})}. It has to map a batch to a batch."
        )
    return y if count == size else jax.tree.map(lambda leaf: leaf[:count], y)


def _check_names(expected: dict[str, Any], inputs: dict[str, Any]) -> None:
    if [name for name, _ in _named(expected)] != [name for name, _ in _named(inputs)]:
        raise ValueError(
            f"predict: expected the inputs {_list(expected)}, got {_list(inputs)}. Those are the "
            "inputs that the model was saved with."
        )


def _as_expected(
    expected: dict[str, Any], inputs: dict[str, Any], own: dict[str, Any]
) -> dict[str, Any]:
    """Return inputs in the expected tree; raise unless shapes and dtypes are as expected."""
    want, got = _named(expected), _named(inputs)
    for (name, spec), (_, leaf), first in zip(want, got, jax.tree.leaves(own), strict=True):
        sizes = leaf.shape[int(first) :], spec.shape[int(first) :]  # without a sample axis
        if sizes[0] != sizes[1] or _dtype_here(leaf.dtype) != spec.dtype:
            raise ValueError(
                f"predict: {name}: expected {_describe(spec)}, got {_describe(leaf)}. Convert it, "
                "or save the model with such a sample."
            )
    return jax.tree.unflatten(jax.tree.structure(expected), [leaf for _, leaf in got])


# Programs


def _export(
    apply: Callable[..., Any], params: Any, inputs: Any, platforms: Sequence[str] | None
) -> tuple[export.Exported, bytes]:
    """Export a model as a program of a flat list of parameters, so that any tree works."""
    leaves, treedef = jax.tree.flatten(params)

    def program(leaves: list[Array], inputs: dict[str, Any]) -> Any:
        return _call(apply, jax.tree.unflatten(treedef, leaves), inputs)

    try:
        exported = export.export(jax.jit(program), platforms=platforms)(
            jax.eval_shape(lambda: leaves),  # keeps weak types, on which promotion depends
            inputs,
        )
        serialized = bytes(exported.serialize())
    except Exception as error:
        error.add_note(
            "save_exported: the model is traced for any batch size, as a symbol. Take sizes from "
            "x.shape, not from len(x); decide nothing by the number of samples; give convolutions "
            "that differ from sample to sample in factored form (straw_jax.modulate); return "
            "arrays in dicts, lists and tuples."
        )
        raise
    batch = jax.tree.leaves(inputs["x"])[0].shape[:1]
    if any(aval.shape[:1] != batch for aval in exported.out_avals):
        raise ValueError(
            "save_exported: expected the model to return arrays [batch, ...], got "
            f"{_list(_outputs(exported))}. It has to map a batch to a batch."
        )
    return exported, serialized


def _deserialize(path: Any, header: dict[str, Any], program: bytes) -> export.Exported:
    """Return the program of a file, and check that it can run in this process."""
    try:
        exported = export.deserialize(bytearray(program))
        exported.mlir_module()  # reads the whole program, as the first call would
    except Exception as error:
        raise ValueError(
            f"load_exported: {path} was made with jax {header['jax']}, and jax {jax.__version__} "
            f"cannot read its program ({_first_line(error)}). Programs load in the version of JAX "
            "that made them and in later ones: update JAX, or save the model with this one."
        ) from error
    here = export.default_export_platform()
    if here not in exported.platforms:
        raise ValueError(
            f"load_exported: expected a program for {here!r}, got one for {exported.platforms} in "
            f"{path}. Save the model with platforms=[{here!r}, ...]."
        )
    for aval in (*exported.in_avals, *exported.out_avals):
        if _dtype_here(aval.dtype) != aval.dtype:
            raise ValueError(
                f"load_exported: {path} computes with {aval.dtype}, which is off in this process. "
                "Set JAX_ENABLE_X64=1, or save the model with 32-bit numbers."
            )
    return exported


def _outputs(exported: export.Exported) -> dict[str, Any]:
    return {"y": jax.tree.unflatten(exported.out_tree, exported.out_avals)}


def _parameters(params: Any) -> Any:
    """Return the parameters as JAX arrays; raise unless all are arrays of numbers."""

    def array(name: str, leaf: Any) -> Array:
        try:
            number = jax.device_put(leaf)
            if not jnp.issubdtype(number.dtype, jax.dtypes.prng_key):
                return number
        except TypeError:  # not an array, or an array of strings
            pass
        raise ValueError(
            f"save_exported: expected parameters to be arrays of numbers, got {name}: "
            f"{getattr(leaf, 'dtype', type(leaf).__name__)}. Bind it to apply (functools.partial)."
        )

    leaves = [array(name, leaf) for name, leaf in _named(params)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _check_key(where: str, key: Any) -> None:
    if key is not None and not (isinstance(key, bytes) and key):
        raise ValueError(
            f"{where}: expected the key to be bytes, such as secrets.token_bytes(), got "
            f"{type(key).__name__}. An input of the model needs another name."
        )


def _need_flatbuffers(where: str) -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise ImportError(f"{where} needs flatbuffers: pip install 'straw_jax[export]'.")


# Files


def _write(
    path: Path, header: dict[str, Any], program: bytes, leaves: Sequence[Array], key: bytes | None
) -> None:
    """Write a file under a temporary name, then rename it."""
    text = json.dumps(header, indent=1).encode()
    if len(text) > _MOST_HEADER:
        raise ValueError(
            f"save_exported: expected a header of at most {_MOST_HEADER:,} bytes, got {len(text):,}"
            f" for {len(leaves):,} parameters. Join parameters into fewer arrays."
        )
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "w+b") as file:
            blank = _comment(file, 0, key)
            with zipfile.ZipFile(file, "w") as archive:
                # By ZipInfo, whose date is fixed: the same model gives the same bytes.
                archive.writestr(zipfile.ZipInfo(_HEADER), text)
                archive.writestr(zipfile.ZipInfo(_PROGRAM), program)
                for i, leaf in enumerate(leaves):
                    archive.writestr(
                        zipfile.ZipInfo(_parameter_file(i)), np.asarray(leaf).tobytes()
                    )
                archive.comment = blank
            digested = file.seek(-len(blank), os.SEEK_END)
            file.write(_comment(file, digested, key))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _comment(file: BinaryIO, size: int, key: bytes | None) -> bytes:
    """Return the comment of an archive; read the `size` bytes before it, and stop there."""
    comment = b"sha256 " + _digest(hashlib.sha256(), file, size)
    if key is not None:
        comment += b" hmac-sha256 " + _digest(hmac.new(key, digestmod="sha256"), file, size)
    return comment


def _digest(hash: Any, file: BinaryIO, size: int) -> bytes:
    file.seek(0)
    while chunk := file.read(min(size, 2**20)):
        hash.update(chunk)
        size -= len(chunk)
    return hash.hexdigest().encode()


def _open(path: Path, key: bytes | None) -> tuple[zipfile.ZipFile, dict[str, Any]]:
    """Return a file's archive and header: verified, and no part larger than the file."""
    data, comment = _verified(path, key)
    with _damage_named(path):
        archive = zipfile.ZipFile(io.BytesIO(data))
        header = _header(archive)
    if header["version"] > _VERSION:
        raise ValueError(
            f"load_exported: expected {path} to be of format version {_VERSION} or earlier, "
            f"got {header['version']}. Update straw_jax."
        )
    with _damage_named(path):
        for field, kind in _FIELDS.items():
            if type(header.get(field)) is not kind:
                raise ValueError(f"its header has no {field} that is a {kind.__name__}")
        if archive.comment != comment or header["version"] != (2 if comment else 1):
            raise ValueError("its SHA-256 is missing")
        parts = archive.infolist()
        if any(part.compress_type for part in parts) or sum(p.file_size for p in parts) > len(data):
            raise ValueError("its parts are not stored as they are")
    return archive, header


def _verified(path: Path, key: bytes | None) -> tuple[bytes, bytes]:
    """Return a file's content and its comment, empty in version 1, with the digests verified.

    The file is read once, so that nothing else is used.
    """
    with open(path, "rb") as file:
        data = file.read(os.fstat(file.fileno()).st_size)
    found = _COMMENT.search(data, max(len(data) - _MOST_COMMENT, 0))
    comment = found.group() if found else b""
    expected = _comment(io.BytesIO(data), len(data) - len(comment), key)
    with _damage_named(path):
        if found and not expected.startswith(found[1]):
            raise ValueError("its SHA-256 differs")
        if data.count(b"PK\1\2") > _MOST_PARTS:  # the directory's entries, before they are read
            raise ValueError("it has too many parts")
    if key is not None and not hmac.compare_digest(comment, expected):
        raise ValueError(
            f"load_exported: expected {path} to be saved with this key; it has another's HMAC, or "
            "none. Ask whoever saved it."
        )
    return data, comment


def _header(archive: zipfile.ZipFile) -> dict[str, Any]:
    """Return the header, checked as far as all versions have it."""
    size = archive.getinfo(_HEADER).file_size
    if size > _MOST_HEADER:
        raise ValueError(f"its header has {size:,} bytes")
    header = json.loads(archive.read(_HEADER))
    if not isinstance(header, dict) or type(header.get("version")) is not int:
        raise ValueError("its header has no version")
    if header.get("format") != _FORMAT:
        raise ValueError(f"its format is {header.get('format')!r}")
    return header


def _check_header(
    header: dict[str, Any], exported: export.Exported, parameters: Any, inputs: Any
) -> None:
    """Check that a header describes its program: who reads it is told the truth."""
    described = {
        "platforms": list(exported.platforms),
        "inputs": _described(inputs),
        "outputs": _described(_outputs(exported)),
        "parameters": _nameless(_described(parameters)),  # the program takes a list
    }
    found = {**header, "parameters": _nameless(header["parameters"])}
    for field, own in described.items():
        if found[field] != own:
            raise ValueError(f"its header has other {field} than its program")


def _nameless(leaves: list[Any]) -> list[Any]:
    return [{**leaf, "name": ""} if isinstance(leaf, dict) else leaf for leaf in leaves]


def _leaves(archive: zipfile.ZipFile, specs: Sequence[Any]) -> list[Array]:
    """Return a file's parameters."""
    return [
        jax.device_put(
            np.frombuffer(archive.read(_parameter_file(i)), spec.dtype).reshape(spec.shape)
        )
        for i, spec in enumerate(specs)
    ]


@contextlib.contextmanager
def _damage_named(path: Any) -> Iterator[None]:
    try:
        yield
    # Damage can show in any layer: the zip structure, its checksums, JSON, a missing part.
    except Exception as error:
        raise ValueError(
            f"load_exported: {path} is damaged, or not a file of save_exported "
            f"({_first_line(error)}). Copy it again, or save the model again."
        ) from error


def _parameter_file(i: int) -> str:
    return f"parameters/{i}"


# Descriptions


def _named(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree.leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def _described(tree: Any) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "dtype": str(leaf.dtype),
            "shape": [size if isinstance(size, int) else str(size) for size in leaf.shape],
        }
        for name, leaf in _named(tree)
    ]


def _describe(leaf: Any) -> str:
    return f"{leaf.dtype} [{', '.join(map(str, leaf.shape))}]"


def _list(tree: Any) -> str:
    return ", ".join(f"{name}: {_describe(leaf)}" for name, leaf in _named(tree)) or "none"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]

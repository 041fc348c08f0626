"""Checks of arguments, on types, shapes and dtypes only: nothing is computed.

Each raises a `ValueError` that says where, what was expected, what came, and the way out.
"""

import numbers
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_LISTED = 6  # leaves of a tree that a message names


def is_array(leaf: Any) -> bool:
    """Return whether a leaf is an array of numbers or of random keys, or the shape of one."""
    shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
    if not isinstance(shape, tuple) or isinstance(dtype, type(None) | str):
        return False
    kinds = np.number, np.bool_, jax.dtypes.extended
    try:
        return any(jax.dtypes.issubdtype(dtype, kind) for kind in kinds)
    except TypeError:  # a dtype of another library
        return False


def is_number(leaf: Any) -> bool:
    """Return whether a leaf is an array, or a number of Python."""
    return isinstance(leaf, numbers.Number) or is_array(leaf)


def is_whole(value: Any) -> TypeGuard[int]:
    """Return whether a value is a whole number, of Python or NumPy."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def describe(tree: Any) -> str:
    """Return the dtypes and shapes of a tree, for a message."""
    leaves = jax.tree.leaves_with_path(tree)
    if isinstance(tree, list | tuple) and leaves and not any(is_array(leaf) for _, leaf in leaves):
        return f"a {type(tree).__name__} of {type(leaves[0][1]).__name__}"
    named = [
        f"{jax.tree_util.keystr(path, simple=True, separator='/')}: {_one(leaf)}".removeprefix(": ")
        for path, leaf in leaves[:_LISTED]
    ]
    more = [f"and {len(leaves) - _LISTED} more"] if len(leaves) > _LISTED else []
    return ", ".join([*named, *more]) or "none"


def _one(leaf: Any) -> str:
    if is_array(leaf):
        return f"{leaf.dtype} [{', '.join(map(str, leaf.shape))}]"
    return f"{leaf!r:.40}" if isinstance(leaf, numbers.Number | str) else type(leaf).__name__


def arrays(where: str, name: str, tree: Any) -> None:
    """Raise unless an argument is an array or a tree of arrays."""
    leaves = jax.tree.leaves(tree)
    if not leaves or not all(map(is_array, leaves)):
        raise ValueError(
            f"{where}: expected {name} to be an array, or a tree of arrays, got {describe(tree)}. "
            "Convert lists and numbers with jnp.asarray."
        )


def factors(where: str, tree: Any) -> None:
    """Raise unless an argument is a tree of factors: a dict of arrays, or of several, by path."""
    if not isinstance(tree, Mapping):
        raise ValueError(
            f"{where}: expected a tree of factors, a dict by path, got {describe(tree)}. Make it"
            " with Straw.factors or FactorSpec.unpack."
        )
    for path, factor in tree.items():
        arrays(where, f"the factors of {path}", factor)


def batch(where: str, name: str, tree: Any) -> Any:
    """Return the number of samples of an array `[batch, ...]`, or of a tree of them."""
    arrays(where, name, tree)
    leaves = jax.tree.leaves(tree)
    sizes = {leaf.shape[:1] for leaf in leaves}
    if len(sizes) != 1 or () in sizes or any(0 in leaf.shape[1:] for leaf in leaves):
        raise ValueError(
            f"{where}: expected {name} to be [batch, ...], of one batch size and without empty"
            f" axes, got {describe(tree)}. One sample needs an axis in front, as x[None]."
        )
    return leaves[0].shape[0]


def sample(where: str, name: str, tree: Any) -> None:
    """Raise unless a sample, of which only shapes and dtypes are used, is a batch of 1 or more."""
    if batch(where, name, tree) == 0:
        raise ValueError(
            f"{where}: expected {name} to be a batch of 1 or more, got {describe(tree)}. Only its"
            " shape is used: jnp.zeros((1, ...)) does."
        )


def same_axes(tree: Any, example: Any) -> bool:
    """Return whether arrays have as many axes as those of an example.

    Another structure may be as good, as a set with a mask is for one without; a list is not.
    """
    structure: Any = jax.tree.structure(tree)
    if structure != jax.tree.structure(example):
        return not (isinstance(tree, list) and is_array(example))
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(example), strict=True)
    return all(len(leaf.shape) == len(other.shape) for leaf, other in pairs)


def like(where: str, name: str, tree: Any, example: Any) -> Any:
    """Return the number of samples of an argument with the axes, not the sizes, of an example."""
    size = batch(where, name, tree)
    described = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))
    if described or not same_axes(tree, example):
        raise ValueError(
            f"{where}: expected {name} to be arrays with the axes of the sample that the model was"
            f" made with, {describe(example)}, got {'the shapes ' * described}{describe(tree)}. Add"
            " a batch axis where there is none, or make the model with such a sample."
        )
    return size


def images(where: str, x: Any, *, least: int = 1) -> None:
    """Raise unless an argument is a batch of images `[batch, h, w, c]` of a least size."""
    if not is_array(x) or len(x.shape) != 4 or min(x.shape[1:3]) < least or x.shape[3] < 1:
        size = f" of at least {least} x {least} pixels" if least > 1 else ""
        raise ValueError(
            f"{where}: expected images [batch, h, w, c]{size}, got {describe(x)}. One image needs"
            " an axis in front, image[None]; gray images need one at the end, images[..., None]."
        )


def styles(where: str, z: Any, *, axes: tuple[int, ...]) -> None:
    """Raise unless style vectors are `[batch, style]`, or `[batch, tokens, d]` where 3 axes fit."""
    batch(where, "the style vectors", z)
    if not is_array(z) or len(z.shape) not in axes:
        forms = {2: "[batch, style]", 3: "[batch, tokens, d]"}
        hint = (
            "Give an encoder of one vector, as PerceiverEncoder(style=64), or generator=TokenHeads."
            if 3 not in axes
            else "Join further axes."
        )
        raise ValueError(
            f"{where}: expected style vectors {' or '.join(forms[n] for n in axes)}, got"
            f" {describe(z)}. {hint}"
        )


def set_and_mask(where: str, form: str, x: Any, mask: Any) -> None:
    """Raise unless arguments are vectors `[batch, n, d]`, and None or a mask `[batch, n]`."""
    if not is_array(x) or len(x.shape) != 3 or 0 in x.shape[1:]:
        raise ValueError(
            f"{where}: expected {form}, got {describe(x)}. One of them needs an axis in front, and"
            " numbers in place of vectors one at the end."
        )
    fits = is_array(mask) and mask.dtype == bool and mask.shape == x.shape[:2]
    if mask is not None and not fits:
        raise ValueError(
            f"{where}: expected a boolean mask {list(x.shape[:2])}, got {describe(mask)}. Compare"
            " numbers first, as mask > 0."
        )


def divides(where: str, *, heads: int, width: int) -> None:
    """Raise unless a width is a multiple of the number of attention heads."""
    if width % heads:
        raise ValueError(
            f"{where}: expected a width that is a multiple of the heads, got width {width} and"
            f" {heads} heads."
        )


def random_key(where: str, key: Any) -> None:
    """Raise unless an argument is one typed random key."""
    typed = is_array(key) and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not isinstance(key, Array) or not typed or key.ndim:
        raise ValueError(
            f"{where}: expected one typed random key, got {describe(key)}. Make it with"
            " jax.random.key(seed), or from a legacy key with jax.random.wrap_key_data; map over"
            " several with jax.vmap."
        )


def positive(where: str, **sizes: Any) -> None:
    """Raise unless all are whole numbers of at least 1."""
    for name, size in sizes.items():
        if not is_whole(size) or size < 1:
            raise ValueError(
                f"{where}: expected {name} to be a whole number of at least 1, got {size!r}."
            )


def widths(where: str, **several: Any) -> None:
    """Raise unless each is a sequence of whole numbers of at least 1."""
    for name, sizes in several.items():
        if not isinstance(sizes, tuple | list) or not all(is_whole(n) and n > 0 for n in sizes):
            raise ValueError(
                f"{where}: expected {name} to be whole numbers of at least 1, as in (8, 16), got"
                f" {sizes!r}."
            )


def multiples_of_8(where: str, name: str, sizes: Any) -> None:
    """Raise unless all are multiples of 8, the number of GroupNorm's groups."""
    if any(size % 8 for size in sizes):
        raise ValueError(
            f"{where}: expected {name} to be multiples of 8, for GroupNorm's groups, got {sizes!r}."
        )


def compute_dtype(where: str, dtype: Any) -> None:
    """Raise unless a module can compute in a dtype: floating, of 16 bits or more, or None."""
    if dtype is None:
        return
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    widest = 64 if jax.config.read("jax_enable_x64") else 32
    floating = found is not None and jax.dtypes.issubdtype(found, np.floating)
    if not floating or not 16 <= jnp.finfo(found).bits <= widest:
        got = repr(dtype) if found is None else found.name
        raise ValueError(
            f"{where}: expected dtype to be bfloat16, float16, float32, float64 (with"
            f" jax_enable_x64) or None, got {got}. Quantise weights, not the computation."
        )


def finite(where: str, **scalars: Any) -> None:
    """Raise unless all are finite numbers, known before tracing."""
    for name, number in scalars.items():
        if not isinstance(number, numbers.Real) or not np.isfinite(float(number)):
            raise ValueError(
                f"{where}: expected {name} to be a finite number, got {describe(number)}. Convert"
                f" an array with float({name}), outside of jax.jit."
            )


def carry(where: str, cell: Any, inputs: Any, carry: Any) -> None:
    """Raise unless the inputs of a recurrent cell's step are an array, and its carry fits them."""
    arrays(where, "inputs", inputs)
    want = jax.eval_shape(lambda: cell.initialize_carry(jax.random.key(0), inputs.shape))
    given = [getattr(leaf, "shape", None) for leaf in jax.tree.leaves(carry)]
    if given != [leaf.shape for leaf in jax.tree.leaves(want)]:
        raise ValueError(
            f"{where}: expected a carry of {describe(want)} for inputs {describe(inputs)}, got"
            f" {describe(carry)}. Make it with initialize_carry(key, inputs.shape)."
        )


def parts(where: str, params: Any, names: tuple[str, ...]) -> None:
    """Raise unless parameters are a dict with entries of these names."""
    if isinstance(params, Mapping) and all(name in params for name in names):
        return
    got = sorted(map(str, params)) if isinstance(params, Mapping) else type(params).__name__
    raise ValueError(
        f"{where}: expected params with the entries {list(names)}, as from init, got {got}. Take"
        " them out of a collection, variables['params'], or of a train state, state.params."
    )


def fits(where: str, expected: Mapping[str, Any], got: Mapping[str, Any], hint: str) -> None:
    """Raise unless parameters by path have all expected leaves, with their shapes."""
    for path, leaf in expected.items():
        found = getattr(got.get(path), "shape", None)
        if found != leaf.shape:
            raise ValueError(
                f"{where}: expected parameters with {path} of shape {list(leaf.shape)}, got"
                f" {'none' if found is None else list(found)}. {hint}"
            )


@contextmanager
def flax_errors(name: str, explain: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Raise a `ValueError` in place of Flax's errors, which name neither model nor input."""
    from flax.errors import FlaxError  # only here: a saved model runs without Flax

    try:
        yield
    except FlaxError as error:
        explain()
        first = " ".join(str(error).split()).partition(" (https://")[0]
        raise ValueError(
            f"{name}: expected an input and options that fit the module, got '{first}'. Options,"
            " such as rngs={'dropout': key}, are keyword arguments of the call."
        ) from error

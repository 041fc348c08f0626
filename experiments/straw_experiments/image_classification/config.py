"""The command lines of run.py and analyse.py: flags, defaults, and all checks without data.

Only the standard library is imported, so that a mistake is answered at once.
"""

import argparse
import json
import math
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from straw_experiments.runner.arguments import Parser, add_out, add_seeds, check_out, number, whole

_GEOMETRIC = (
    "compact_augmented",
    "compact_fan",
    "compact_context",
    "geometric_stn",
    "geometric_refined",
    "geometric",
    "geometric_affine",
)
MODELS = (
    "standalone",
    "wide_dense",
    "wide_compute",
    "wide",
    "straw",
    "resnet34",
    "compact_static",
    "compact_wide",
    "compact",
    *_GEOMETRIC,
    *(
        f"{network}{form}"
        for network in ("conv7", "wrn_16_1", "wrn_40_2")
        for form in ("", "_narrow", "_generated")
    ),
)

_ENCODED = ("straw", "compact")  # have an encoder that can be exchanged
_NETWORKS = {"executor": "cnn", "encoder": "conv"}  # the article's

# The article's sets; straw_experiments.image_classification.published holds what they gave.
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "full_rank16": {**_NETWORKS, "fraction": 1.0, "rank": 16, "epochs": 10},
    "10pct_rank16": {**_NETWORKS, "fraction": 0.1, "rank": 16, "epochs": 5},
    "20pct_rank32": {**_NETWORKS, "fraction": 0.2, "rank": 32, "epochs": 5},
}

# Recipes of our own, chosen on validation images (--validation).
_COMPACT = {
    **_NETWORKS,
    "rank": 4,
    "base": "trained",
    "batch_size": 32,
    "learning_rate": 4e-3,
    "schedule": "cosine",
}
PRESETS: dict[str, dict[str, Any]] = {"compact": _COMPACT, "geometric": _COMPACT}
_VIT_MODELS = ("standalone", "wide", "straw")
_PRESET_MODELS = {
    "compact": ["compact_static", "compact_wide", "compact"],
    "geometric": ["compact_static", *_GEOMETRIC],
}

# What does not change a result may change between a run and its resumption. (The names of the
# article's set and of a preset follow from other settings; how many runs train at once, and with it
# the number of threads of each, and how many devices a run has, change rounding alone.)
_INCIDENTAL = (
    "data_dir",
    "archive",
    "out",
    "resume",
    "jobs",
    "mesh",
    "distributed",
    "experiment",
    "preset",
)

_USUAL: dict[str, Any] = {
    **_NETWORKS,
    "fraction": 0.1,
    "rank": 16,
    "base": "none",
    "models": ["standalone", "straw"],
    "batch_size": 128,
    "learning_rate": 1e-4,
    "schedule": "constant",
}
# A transformer needs its positions, norms and patches as trained weights, and learns nothing in
# five epochs by the article's recipe.
_USUAL_OF: dict[str, dict[str, Any]] = {
    "vit": {
        "rank": 4,
        "base": "trained",
        "batch_size": 32,
        "learning_rate": 1e-3,
        "schedule": "cosine",
    },
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read and check the command line.

    A mistake ends the process with one line on stderr and exit code 2; nothing is written.

    Args:
        argv: The words after the program's name.

    Returns:
        One attribute for each field of `study.Config`, and "distributed": None,
        or the arguments of `runner.hosts.join`.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        if arguments.models is not None:
            arguments.models = _models(arguments.models)
        _fill_in(arguments)
        _check_devices(arguments)
        _check_archive(arguments.archive)
        check_out(arguments, _INCIDENTAL, _USUAL)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def parse_analysis(argv: Sequence[str]) -> argparse.Namespace:
    """Read and check the command line of analyse.py, as `parse` does that of run.py.

    Args:
        argv: The words after the program's name.

    Returns:
        "images", and "settings": one entry for each field of
        `study.Config`, as they were, but for where data and results lie.
    """
    parser = Parser(
        prog="analyse.py",
        description="Look at what the trained STRAW of a finished experiment does: what its"
        " modulator costs, how its updates vary, and how rotation and blur move them; with the"
        " accuracy of all models by angle, scale, shear and blur. Writes analysis.json and figures"
        " beside the results.",
        epilog="A few minutes a run on a CPU. Data are found as run.py found them, or as given.",
    )
    parser.add_argument("results", metavar="RESULTS", help="folder of a finished run.py")
    parser.add_argument(
        "--images",
        type=whole(2),
        default=4700,
        metavar="N",
        help="test images for accuracies, and half as many for updates (%(default)s)",
    )
    parser.add_argument("--data-dir", metavar="DIR", help="where data are looked for")
    parser.add_argument("--archive", metavar="FILE", help="EMNIST's gzip.zip, if you have it")
    arguments = parser.parse_args(argv)
    try:
        _check_archive(arguments.archive)
        arguments.settings = _stored_settings(Path(arguments.results)) | {
            name: getattr(arguments, name)
            for name in ("archive", "data_dir")
            if getattr(arguments, name)
        }
    except ValueError as error:
        parser.error(str(error))
    return arguments


def _stored_settings(results: Path) -> dict[str, Any]:
    """Read the settings of an experiment, with its folder as where to continue."""
    config = results / "config.json"
    try:
        stored = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"argument RESULTS: expected a folder with results of run.py, cannot read {config}:"
            f" {getattr(error, 'strerror', error)}"
        ) from None
    names = vars(_parser().parse_args([]))
    stored = _NETWORKS | stored  # which earlier versions did not write
    if missing := [name for name in names if name not in {*stored, *_INCIDENTAL}]:
        raise ValueError(
            f"argument RESULTS: {config} has no {', '.join(missing)}: it was written by another"
            " version of run.py"
        )
    settings = {name: stored.get(name) for name in names if name != "distributed"}
    return settings | {"out": str(results), "resume": True, "mesh": None}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="run.py",
        description="Train STRAW and its baselines on EMNIST balanced, test them on standard,"
        " rotated and blurred images, and write table, report and figures.",
        epilog="Without flags: the article's second set (10 % of the images, rank 16, 5 epochs),"
        " a matter of minutes on a CPU with 2 cores.",
    )

    what = parser.add_argument_group("what to train")
    what.add_argument(
        "--experiment",
        choices=EXPERIMENTS,
        help="one of the article's sets, in place of --fraction, --rank and --epochs",
    )
    what.add_argument(
        "--preset",
        choices=PRESETS,
        help="a recipe of ours, in place of --models, --rank, --base, --batch-size,"
        " --learning-rate and --schedule; compact: a STRAW of 343 thousand parameters, its executor"
        " alone, and that widened to as many parameters; geometric: an eye that sees how an image"
        " is turned, and turns the executor's first weights, learnt without labels of turned"
        " images, and what it is measured by",
    )
    what.add_argument(
        "--models",
        nargs="+",
        metavar="MODEL",
        help="any of standalone, straw, resnet34, and of the controls wide_dense (standalone with"
        " its dense layer widened to STRAW's parameters), wide_compute and wide (all layers"
        " scaled, to STRAW's multiply-adds and to its parameters); with --preset compact any of"
        " compact, compact_static, compact_wide; with --preset geometric any of geometric,"
        " geometric_stn and geometric_refined (the same network, whose eye learns from labels"
        " alone, or from labels, too), compact_context (such an eye, but low-rank updates),"
        " geometric_affine (an eye for scale, shear and shift, too),"
        " compact_augmented (labels of turned images), compact_fan (mean over a fan of rotations);"
        " of the HyperNetworks paper conv7, its network for"
        " MNIST, and the wide residual networks wrn_16_1 and wrn_40_2, each also as _generated, its"
        " kernels written by one generator, and as _narrow, with about as few parameters (default:"
        " standalone straw)",
    )
    what.add_argument(
        "--rank", type=whole(1), help="rank of the factors that STRAW writes (default: 16)"
    )
    what.add_argument(
        "--executor",
        choices=("cnn", "vit"),
        help="the network that STRAW modulates: the article's CNN, or a small vision transformer,"
        " for which --rank 4, --base trained, --batch-size 32, --learning-rate 0.001 and --schedule"
        " cosine are usual, and of the controls there is wide (default: cnn)",
    )
    what.add_argument(
        "--encoder",
        choices=("conv", "trm"),
        help="the network that looks at an image for STRAW: convolutions, or the TRM encoder, a"
        " transformer block that is applied again and again (default: conv)",
    )
    what.add_argument(
        "--base",
        choices=("none", "trained"),
        help="what STRAW's factors are added to: nothing, as for the article's figures, or trained"
        " base weights, as in its equation (default: none)",
    )

    how = parser.add_argument_group("how to train")
    how.add_argument(
        "--fraction",
        type=number("a number above 0, at most 1", lambda value: 0 < value <= 1),
        help="share of the training images, evenly strided; 1 takes all (default: 0.1)",
    )
    how.add_argument(
        "--epochs",
        type=whole(1),
        help="passes over these images (default: 10 if --fraction is 1, else 5)",
    )
    how.add_argument(
        "--batch-size", type=whole(1), metavar="N", help="images a step (default: 128)"
    )
    how.add_argument(
        "--learning-rate",
        type=number("a number above 0", lambda value: 0 < value < math.inf),
        metavar="RATE",
        help="of Adam (default: 0.0001)",
    )
    how.add_argument(
        "--schedule",
        choices=("constant", "cosine"),
        help="of the learning rate: constant, or up to it in the first tenth of all steps and down"
        " to 0 along half a cosine (default: constant)",
    )
    how.add_argument(
        "--validation",
        type=number("a number between 0 and 1", lambda value: 0 < value < 1),
        metavar="SHARE",
        help="hold out this share of the training images, and use them in place of the test images:"
        " for choosing a recipe",
    )
    add_seeds(how, "a model")
    how.add_argument(
        "--mesh",
        type=_mesh,
        metavar="data=N,model=M",
        help="train each run on N * M devices: each has its share of the samples of a batch, and"
        " each M-th of every rank of STRAW's generator (default: one device)",
    )
    how.add_argument(
        "--distributed",
        nargs="?",
        const=(),
        type=_processes,
        metavar="HOST:PORT,COUNT,INDEX",
        help="train with other processes that are started alike, with --mesh over the devices of"
        " all: the first one's address, how many they are, which this is; without a value JAX finds"
        " out by itself, as on a TPU pod or under Slurm",
    )

    where = parser.add_argument_group("data and results")
    where.add_argument(
        "--dataset",
        default="auto",
        metavar="NAME",
        help="auto (EMNIST, or glyphs if that cannot be had), emnist, glyphs, or a TFDS set of 28 x"
        " 28 or 32 x 32 images such as mnist or cifar10 (default: auto)",
    )
    where.add_argument(
        "--data-dir",
        metavar="DIR",
        help="where data are looked for and kept (TFDS_DATA_DIR, or else ~/tensorflow_datasets)",
    )
    where.add_argument("--archive", metavar="FILE", help="EMNIST's gzip.zip, if you have it")
    where.add_argument(
        "--limit",
        type=whole(2),
        metavar="N",
        help="use only the first N training and N test images, for a quick look (all)",
    )
    add_out(where)
    return parser


def _mesh(text: str) -> dict[str, int]:
    """Read "data=4,model=2", of which one may be left out, as of `straw_jax.sharding.make_mesh`."""
    sizes = {"data": 1, "model": 1}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in sizes or not size.isdecimal() or int(size) < 1:
            raise argparse.ArgumentTypeError(
                f"expected devices by axis, such as data=4,model=2, got {text!r}"
            )
        sizes[name] = int(size)
    return sizes


def _processes(text: str) -> tuple[str, int, int]:
    """Read "host:port,count,index"."""
    match = re.fullmatch(r"(.+:\d+),(\d+),(\d+)", text)
    if not match or int(match[3]) >= int(match[2]):
        raise argparse.ArgumentTypeError(
            f"expected HOST:PORT,COUNT,INDEX with INDEX below COUNT, got {text!r}"
        )
    return match[1], int(match[2]), int(match[3])


def _models(words: Sequence[str]) -> list[str]:
    """Take names apart that are parted by commas, and put them in the order of MODELS."""
    names = [name for word in words for name in word.split(",") if name]
    unknown = [name for name in names if name not in MODELS]
    if unknown or not names:
        raise ValueError(
            f"argument --models: expected any of {', '.join(MODELS)}, got {' '.join(words)!r}"
        )
    return [name for name in MODELS if name in names]


def _check_devices(arguments: argparse.Namespace) -> None:
    """Check that the flags for devices fit each other."""
    mesh = arguments.mesh
    if mesh and arguments.jobs not in (None, 1):
        raise ValueError("argument --jobs: with --mesh runs train one by one; leave it out")
    if mesh and arguments.batch_size % mesh["data"]:
        raise ValueError(
            f"argument --mesh: expected data to divide the batch of {arguments.batch_size}, got"
            f" {mesh['data']}; change one of them, or --batch-size"
        )
    if arguments.distributed is not None and not mesh:
        raise ValueError("argument --distributed: needs --mesh, over the devices of all processes")


def _fill_in(arguments: argparse.Namespace) -> None:
    """Settle what depends on other flags: named settings, defaults, and the output folder."""
    if arguments.experiment:
        _take_over(arguments, "experiment", EXPERIMENTS)
    if arguments.preset:
        _take_over(arguments, "preset", PRESETS)
        arguments.models = arguments.models or _PRESET_MODELS[arguments.preset]
    usual = _USUAL | _USUAL_OF.get(arguments.executor, {})
    for name, value in usual.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.epochs is None:
        arguments.epochs = 10 if arguments.fraction == 1 else 5
    # The same settings are the same experiment, however they were given.
    arguments.experiment = None
    for name, settings in EXPERIMENTS.items():
        whole = arguments.limit is None and arguments.validation is None
        if whole and settings.items() <= vars(arguments).items():
            arguments.experiment = name
    if arguments.executor == "vit":
        _check_vit(arguments)
    if arguments.encoder != _NETWORKS["encoder"] and not {*_ENCODED} & {*arguments.models}:
        raise ValueError(
            f"argument --encoder: {' and '.join(_ENCODED)} alone look with it, and --models is"
            f" {' '.join(arguments.models)}; leave it out"
        )
    arguments.out = arguments.out or str(Path("results", _readable_name(arguments)))


def _check_vit(arguments: argparse.Namespace) -> None:
    if arguments.base == "none":
        raise ValueError(
            "argument --base: --executor vit generates its attention and MLPs alone, the rest needs"
            " trained weights; got none, expected trained"
        )
    if others := [name for name in arguments.models if name not in _VIT_MODELS]:
        raise ValueError(
            f"argument --models: with --executor vit expected any of {', '.join(_VIT_MODELS)}, got"
            f" {others[0]}"
        )


def _take_over(
    arguments: argparse.Namespace, flag: str, named: Mapping[str, Mapping[str, Any]]
) -> None:
    """Take over named settings, which no other flag may contradict."""
    chosen = getattr(arguments, flag)
    for name, value in named[chosen].items():
        if getattr(arguments, name) not in (None, value):
            raise ValueError(
                f"argument --{name.replace('_', '-')}: --{flag} {chosen} sets it to {value}, got"
                f" {getattr(arguments, name)}; leave one of the two out"
            )
        setattr(arguments, name, value)


def _readable_name(arguments: argparse.Namespace) -> str:
    """Name a run by its settings, the usual ones left unsaid: other settings, another name."""
    parts = [
        arguments.dataset,
        f"{arguments.fraction:.6g}",
        f"rank{arguments.rank}",
        f"base-{arguments.base}",
        f"{arguments.epochs}epochs",
        *arguments.models,
    ]
    networks = [getattr(arguments, name) for name in _NETWORKS]
    parts[1:1] = [name for name in networks if name not in _NETWORKS.values()]
    if arguments.schedule != _USUAL["schedule"]:
        parts.append(arguments.schedule)
    unusual = {
        "batch_size": _USUAL["batch_size"],
        "learning_rate": _USUAL["learning_rate"],
        "seed": 0,
        "seeds": 1,
        "limit": None,
        "validation": None,
    }
    parts += [
        f"{name.replace('_', '-')}{getattr(arguments, name):.6g}"
        for name, usual in unusual.items()
        if getattr(arguments, name) != usual
    ]
    return "_".join(parts).replace("/", "-")


def _check_archive(archive: str | None) -> None:
    if archive is None:
        return
    if not os.path.isfile(archive):
        raise ValueError(f"argument --archive: expected EMNIST's gzip.zip, found no file {archive}")
    if not zipfile.is_zipfile(archive):
        raise ValueError(
            f"argument --archive: {archive} is no whole zip file; was its download cut off?"
        )

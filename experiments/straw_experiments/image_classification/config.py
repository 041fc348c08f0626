"""The settings of `run.py` and `analyse.py`: flags, defaults, recipes, and all checks without data.

Only the standard library is imported, so that a mistake is answered at once.
"""

import argparse
import dataclasses
import math
import os
import re
import socket
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from straw_experiments.image_classification.models import MODELS
from straw_experiments.runner import limits, records, settings
from straw_experiments.runner.command import program
from straw_experiments.runner.limits import SIZE
from straw_experiments.runner.precision import BYTES
from straw_experiments.runner.readers import number, positive, whole
from straw_experiments.runner.settings import Parser, RunConfig, flag, setting

Schedule: TypeAlias = Literal["constant", "cosine"]

_NETWORKS = {"executor": "cnn", "encoder": "conv"}  # the article's

EXPERIMENTS: dict[str, dict[str, Any]] = {
    "full_rank16": {**_NETWORKS, "fraction": 1.0, "rank": 16, "epochs": 10},
    "10pct_rank16": {**_NETWORKS, "fraction": 0.1, "rank": 16, "epochs": 5},
    "20pct_rank32": {**_NETWORKS, "fraction": 0.2, "rank": 32, "epochs": 5},
}
"""The article's sets; `published` holds what they gave."""

_COMPACT = {
    **_NETWORKS,
    "rank": 4,
    "base": "trained",
    "batch_size": 32,
    "learning_rate": 4e-3,
    "schedule": "cosine",
}
PRESETS: dict[str, dict[str, Any]] = {"compact": _COMPACT, "geometric": _COMPACT}
"""Recipes of our own, chosen on validation images (--validation)."""

_USUAL_OF: dict[str, dict[str, Any]] = {
    # A transformer needs its positions, norms and patches as trained weights, and learns nothing
    # in five epochs by the article's recipe.
    "vit": {
        "rank": 4,
        "base": "trained",
        "batch_size": 32,
        "learning_rate": 1e-3,
        "schedule": "cosine",
    },
}

_LONG_EPOCHS, _EPOCHS = 10, 5  # with all training images, and with fewer
# Numbers of a training step for each pixel; of the smallest model 350 bytes were measured, float32.
_PIXEL = 75


def _mesh(text: str) -> dict[str, int]:
    """Read "data=4,model=2", of which one may be left out, as of `straw_jax.sharding.make_mesh`."""
    sizes = {"data": 1, "model": 1}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in sizes or not re.fullmatch("[1-9][0-9]{0,5}", size):
            raise argparse.ArgumentTypeError(
                f"expected devices by axis, such as data=4,model=2, got {text!r}"
            )
        sizes[name] = int(size)
    return sizes


def _processes(text: str) -> tuple[str, int, int]:
    """Read "host:port,count,index"."""
    match = re.fullmatch(r"(.+:([0-9]{1,5})),([0-9]{1,6}),([0-9]{1,6})", text)
    if not match or not 0 < int(match[2]) < 2**16 or int(match[4]) >= int(match[3]):
        raise argparse.ArgumentTypeError(
            f"expected HOST:PORT,COUNT,INDEX with INDEX below COUNT, got {text!r}"
        )
    return match[1], int(match[3]), int(match[4])


_WHAT, _HOW, _WHERE = "what to train", "how to train", "data and results"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """Every setting of `run.py`."""

    experiment: str | None = setting(
        None,
        "one of the article's sets, in place of --fraction, --rank and --epochs",
        group=_WHAT,
        choices=tuple(EXPERIMENTS),
        incidental=True,  # it follows from other settings, like the next
    )
    preset: str | None = setting(
        None,
        "one of our own recipes, in place of --models, --rank, --base, --batch-size,"
        " --learning-rate and --schedule; compact: a STRAW of 343 thousand parameters, its executor"
        " alone, and that executor widened to as many parameters; geometric: a pose encoder that"
        " rotates the executor's first weights, trained without labels of rotated images, and its"
        " baselines",
        group=_WHAT,
        choices=tuple(PRESETS),
        incidental=True,
    )
    models: list[str] = setting(
        ["standalone", "straw"],
        "models to train, see the list below",
        group=_WHAT,
        nargs="+",
        metavar="MODEL",
    )
    rank: int = setting(
        16, "rank of the factors that STRAW writes", group=_WHAT, read=whole(1, SIZE)
    )
    executor: str = setting(
        "cnn",
        "the network that STRAW modulates: the article's CNN, or a small vision transformer, whose"
        " defaults are --rank 4, --base trained, --batch-size 32, --learning-rate 0.001 and"
        " --schedule cosine, and which has the models standalone, wide and straw",
        group=_WHAT,
        choices=("cnn", "vit"),
    )
    encoder: str = setting(
        "conv",
        "STRAW's encoder of the image: convolutions, or the TRM encoder, a transformer block that"
        " is applied repeatedly",
        group=_WHAT,
        choices=("conv", "trm"),
    )
    base: Literal["none", "trained"] = setting(
        "none",
        "what STRAW's factors are added to: nothing, as for the article's figures, or trained base"
        " weights, as in its equation",
        group=_WHAT,
        choices=("none", "trained"),
    )

    fraction: float = setting(
        0.1,
        "share of the training images, evenly strided; 1 takes all",
        group=_HOW,
        read=number("a number above 0, at most 1", lambda value: 0 < value <= 1),
    )
    epochs: int = setting(
        _EPOCHS,
        "passes over these images",
        group=_HOW,
        read=whole(1, 10**6),
        shown=f"{_LONG_EPOCHS} if --fraction is 1, else {_EPOCHS}",
    )
    batch_size: int = setting(128, "images a step", group=_HOW, read=whole(1, SIZE), metavar="N")
    learning_rate: float = setting(1e-4, "of Adam", group=_HOW, read=positive, metavar="RATE")
    schedule: Schedule = setting(
        "constant",
        "of the learning rate: constant, or a linear warm-up over the first tenth of all steps and"
        " a cosine decay to 0",
        group=_HOW,
        choices=("constant", "cosine"),
    )
    validation: float | None = setting(
        None,
        "hold out this share of the training images, and use them in place of the test images: for"
        " choosing a recipe",
        group=_HOW,
        read=number("a number between 0 and 1", lambda value: 0 < value < 1),
        metavar="SHARE",
    )
    mesh: dict[str, int] | None = setting(
        None,
        "train each run on N * M devices: the samples of a batch are split over the first axis, and"
        " the ranks of STRAW's generator over the second",
        group=_HOW,
        read=_mesh,
        metavar="data=N,model=M",
        shown="one device",
        incidental=True,  # changes rounding alone, like the number of jobs
    )
    distributed: tuple[str, int, int] | tuple[()] | None = setting(
        None,
        "train with other processes that are started alike, with --mesh over the devices of all:"
        " the address of the first, how many there are, which this is; without a value JAX finds"
        " out by itself, as on a TPU pod or under Slurm",
        group=_HOW,
        read=_processes,
        nargs="?",
        const=(),
        metavar="HOST:PORT,COUNT,INDEX",
        incidental=True,
    )

    dataset: str = setting(
        "auto",
        "auto (EMNIST, or glyphs if that cannot be had), emnist, glyphs, a TFDS set of 28 x 28 or"
        " 32 x 32 images such as mnist or cifar10, or your own images: a folder with a folder for"
        " each class, an .npz file, or a folder of idx files",
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
        read=whole(2, SIZE),
        metavar="N",
        shown="all",
    )


def parse(argv: Sequence[str]) -> Config:
    """Read and check the command line of `run.py`.

    A mistake ends the process with one line on stderr and exit code 2; nothing is written.

    Args:
        argv: The words after the program's name.
    """
    parser = Parser(
        prog=program("run"),
        description="Train STRAW and its baselines on EMNIST balanced, test them on standard,"
        " rotated and blurred images, and write table, report and figures.",
        epilog="Without flags: the article's second set (10 % of the images, rank 16, 5 epochs),"
        " a matter of minutes on a CPU with 2 cores.",
        models=MODELS,
    )
    return settings.parse(parser, Config, configure, argv)


def configure(given: Mapping[str, Any]) -> Config:
    """Complete settings by named recipes and defaults, and check them.

    Args:
        given: Settings by name, as in `Config`; the rest is completed.

    Raises:
        ValueError: They contradict each other, or name what is not there.
    """
    chosen = dict(given)
    if "models" in chosen:
        chosen["models"] = _models(chosen["models"])
    chosen = _completed(chosen)
    _check_networks(chosen)
    config = Config(**{**chosen, "out": chosen["out"] or str(Path("results", _name(chosen)))})
    _check_devices(config)
    _check_memory(config)
    check_archive(config.archive)
    settings.check_out(config)
    return config


def _completed(chosen: dict[str, Any]) -> dict[str, Any]:
    """Take over named settings and defaults, and name the article's set where these are its."""
    if chosen.get("experiment"):
        chosen |= _taken_over(chosen, "experiment", EXPERIMENTS)
    if preset := chosen.get("preset"):
        chosen |= _taken_over(chosen, "preset", PRESETS)
        of_preset = [name for name, model in MODELS.items() if preset in model.presets]
        chosen.setdefault("models", of_preset)
    if chosen.get("fraction") == 1:
        chosen.setdefault("epochs", _LONG_EPOCHS)
    chosen = settings.defaults(Config) | _USUAL_OF.get(chosen.get("executor", ""), {}) | chosen
    # The same settings are the same experiment, however they were given.
    whole = chosen["limit"] is None and chosen["validation"] is None
    same = [name for name, set_ in EXPERIMENTS.items() if whole and set_.items() <= chosen.items()]
    return chosen | {"experiment": same[0] if same else None}


def _taken_over(
    chosen: Mapping[str, Any], by: str, named: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Return named settings, which no other flag may contradict."""
    name = chosen[by]
    for key, value in named[name].items():
        if chosen.get(key, value) != value:
            raise ValueError(
                f"{flag(key)}: --{by} {name} sets it to {value}, got {chosen[key]}; leave one of"
                " the two out"
            )
    return named[name]


def _models(words: Sequence[str]) -> list[str]:
    """Split names at commas, and put them in the order of `MODELS`."""
    names = [name for word in words for name in word.split(",") if name]
    if not names or not set(names) <= set(MODELS):
        raise ValueError(
            f"argument --models: expected any of {', '.join(MODELS)}, got {' '.join(words)!r}"
        )
    return [name for name in MODELS if name in names]


def _check_networks(chosen: Mapping[str, Any]) -> None:
    """Check that models, executor, base and encoder fit each other."""
    executor, models = chosen["executor"], chosen["models"]
    if executor == "vit" and chosen["base"] == "none":
        raise ValueError(
            "argument --base: --executor vit generates its attention and MLPs alone, the rest needs"
            " trained weights; got none, expected trained"
        )
    fitting = [name for name, model in MODELS.items() if executor in model.executors]
    if others := [name for name in models if name not in fitting]:
        raise ValueError(
            f"argument --models: with --executor {executor} expected any of {', '.join(fitting)},"
            f" got {others[0]}"
        )
    encoded = [name for name, model in MODELS.items() if model.takes_encoder]
    if chosen["encoder"] != _NETWORKS["encoder"] and not {*encoded} & {*models}:
        raise ValueError(
            f"argument --encoder: only {' and '.join(encoded)} have one to exchange, and --models"
            f" is {' '.join(models)}; leave it out"
        )


def _check_devices(config: Config) -> None:
    """Check that the flags for devices fit each other."""
    mesh = config.mesh
    if mesh and config.jobs not in (None, 1):
        raise ValueError("argument --jobs: with --mesh runs train one by one; leave it out")
    if mesh and config.batch_size % mesh["data"]:
        raise ValueError(
            f"argument --mesh: expected data to divide the batch of {config.batch_size}, got"
            f" {mesh['data']}; change one of them, or --batch-size"
        )
    if config.distributed is not None and not mesh:
        raise ValueError("argument --distributed: needs --mesh, over the devices of all processes")
    if config.distributed:
        _check_address(config.distributed[0])


def _check_address(address: str) -> None:
    host = address.rpartition(":")[0].strip("[]")
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"argument --distributed: cannot find the host {host}: {reason}; give the name or"
            " address by which the first process's machine is reached from this one"
        ) from None


def _check_memory(config: Config) -> None:
    """Check that there is memory for the least that these sizes need; more is known with JAX."""
    settings.check_jobs(config, config.models)
    machines = math.prod(config.mesh.values()) if config.mesh else 1
    by_rank = [MODELS[name].weights_a_rank.get(config.executor, 0) for name in config.models]
    limits.check(
        f"argument --rank: {config.rank}",
        config.rank * max(by_rank) * limits.TRAINED,
        "the weights that write factors",
        machines=machines,
    )
    check_batch(config, (8, 8))


def check_batch(config: Config, image: Sequence[int]) -> None:
    """Check that there is memory for a batch's images, and what a model makes of them.

    Args:
        config: The settings.
        image: Height and width of an image, and perhaps its channels.

    Raises:
        ValueError: There is not.
    """
    limits.check(
        f"argument --batch-size: {config.batch_size}",
        config.batch_size * _PIXEL * BYTES[config.precision] * image[0] * image[1],
        "a step's images",
        machines=math.prod(config.mesh.values()) if config.mesh else 1,
    )


def check_archive(archive: str | None) -> None:
    """Refuse a file that is no whole archive.

    Raises:
        ValueError: It is not.
    """
    if archive is None:
        return
    if not os.path.isfile(archive):
        raise ValueError(f"argument --archive: expected EMNIST's gzip.zip, found no file {archive}")
    if not zipfile.is_zipfile(archive):
        raise ValueError(
            f"argument --archive: {archive} is no whole zip file; was its download cut off?"
        )


def _name(chosen: Mapping[str, Any]) -> str:
    """Name a run by its settings; usual ones are left out: other settings, another name."""
    usual = settings.defaults(Config)
    networks = [chosen[name] for name in _NETWORKS if chosen[name] != usual[name]]
    dataset = chosen["dataset"]
    if dataset[:1] in ("/", ".", "~") or os.path.exists(dataset):  # a user's own data
        dataset = Path(dataset).expanduser().resolve().name.removesuffix(".npz")
    parts = [
        dataset,
        *networks,
        f"{chosen['fraction']:.6g}",
        f"rank{chosen['rank']}",
        f"base-{chosen['base']}",
        f"{chosen['epochs']}epochs",
        *chosen["models"],
    ]
    parts += [chosen[x] for x in ("schedule", "precision") if chosen[x] != usual[x]]
    parts += [
        f"{name.replace('_', '-')}{chosen[name]:.6g}"
        for name in ("batch_size", "learning_rate", "seed", "seeds", "limit", "validation")
        if chosen[name] != usual[name]
    ]
    return "_".join(parts).replace("/", "-")


# --- analyse.py ---------------------------------------------------------------------------------


class Analysis(NamedTuple):
    """What `analyse.py` is asked for.

    Attributes:
        config: The settings of the run, as they were, but for where data and results lie.
        images: Test images for accuracies.
    """

    config: Config
    images: int


def parse_analysis(argv: Sequence[str]) -> Analysis:
    """Read and check the command line of `analyse.py`, as `parse` does that of `run.py`.

    Args:
        argv: The words after the program's name.
    """
    parser = Parser(
        prog=program("analyse"),
        description="Measure what the trained STRAW of a finished run does: what its modulator"
        " costs, how its updates vary, and how rotation and blur change them; and the accuracy of"
        " all models by angle, scale, shear and blur. Writes analysis.json and figures beside the"
        " results.",
        epilog="A few minutes a run on a CPU. Data are found as run.py found them, or as given.",
    )
    parser.add_argument("results", metavar="RESULTS", help="folder of a finished run.py")
    parser.add_argument(
        "--images",
        type=whole(2, SIZE),
        default=4700,
        metavar="N",
        help="test images for accuracies, and half as many for updates (%(default)s)",
    )
    parser.add_argument("--data-dir", metavar="DIR", help="where data are looked for")
    parser.add_argument("--archive", metavar="FILE", help="EMNIST's gzip.zip, if you have it")
    arguments = parser.parse_args(argv)
    try:
        check_archive(arguments.archive)
        given = {name: getattr(arguments, name) for name in ("archive", "data_dir")}
        config = stored_config(Path(arguments.results))
        return Analysis(
            dataclasses.replace(config, **{k: v for k, v in given.items() if v}), arguments.images
        )
    except ValueError as error:
        parser.error(str(error))


_LATER = ("executor", "encoder", "precision")  # settings that earlier versions did not have


def stored_config(results: Path) -> Config:
    """Read the settings of a run, with its folder as where to continue.

    Args:
        results: Of `run.py`.

    Raises:
        ValueError: The folder holds no settings that this version can read.
    """
    path = results / "config.json"
    try:
        stored = records.read_settings(results)
    except (OSError, records.RecordError) as error:
        raise ValueError(
            f"argument RESULTS: expected a folder with results of run.py, {error}"
        ) from None
    if stored is None:
        raise ValueError(
            f"argument RESULTS: expected a folder with results of run.py, cannot read {path}: it is"
            " not there"
        )
    needed = [x.name for x in dataclasses.fields(Config) if not x.metadata["incidental"]]
    if missing := [name for name in needed if name not in {*stored, *_LATER}]:
        raise ValueError(
            f"argument RESULTS: {path} has no {', '.join(missing)}: it was written by another"
            " version of run.py"
        )
    known = settings.defaults(Config)
    # An earlier version did not write what it did not have: the defaults are what it did.
    found = known | {name: stored[name] for name in known if name in stored}
    incidental = {"out": str(results), "resume": True, "mesh": None, "distributed": None}
    return Config(**found | incidental)
